"""torch's own tools on models with RBN layers; each test is a row of docs/tools.md."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.fx.experimental.optimization import fuse
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint

import rbnorm


def net(act: bool = False) -> nn.Sequential:
    """A small network whose RBN layer has a calibration to lose."""
    torch.manual_seed(0)
    options = {"center_weight_init": 0.4, "scale_weight_init": 0.7}
    layers = (
        [rbnorm.RepresentativeBatchNormAct2d(4, act_layer=nn.SiLU, **options)]
        if act
        else [rbnorm.RepresentativeBatchNorm2d(4, **options), nn.ReLU()]
    )
    tail = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(nn.Conv2d(2, 4, 3), *layers, *tail)


def data(size: int = 5) -> Tensor:
    return torch.randn(size, 2, 6, 6, generator=torch.Generator().manual_seed(size))


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_averaged_model_and_update_bn() -> None:
    """The averaged parameters get the statistics of the loader's batches, equally weighted."""
    model = net()
    averaged = swa_utils.AveragedModel(model)
    starts = []
    for _ in range(3):
        starts.append(copy.deepcopy(dict(model.named_parameters())))
        averaged.update_parameters(model)
        model(data()).square().sum().backward()
        torch.optim.SGD(model.parameters(), 0.01).step()
        model.zero_grad()
    for name, parameter in averaged.module.named_parameters():
        assert_same(parameter.data, torch.stack([s[name].data for s in starts]).mean(0))
    swa_utils.update_bn([data(3), data(4)], averaged)
    layer = averaged.module[1]
    means = [
        ((1 + layer.center_weight[:, None]) * averaged.module[0](x).transpose(0, 1).flatten(1))
        .mean(1)
        .detach()
        for x in (data(3), data(4))
    ]
    assert_same(layer.running_mean, (means[0] + means[1]) / 2)
    assert layer.momentum == 0.1


class Checkpointed(nn.Module):
    def __init__(self, body: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.body, self.reentrant = body, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


def step(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    return x.grad


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("act", [True, False])
def test_activation_checkpointing_counts_a_batch_twice(
    reentrant: bool, momentum: float | None, act: bool
) -> None:
    """As in BatchNorm: each forward pass is an update, that of the backward pass too."""
    plain = net(act)
    plain[1].momentum = momentum
    saving = Checkpointed(copy.deepcopy(plain), reentrant)
    for x in (data(5), data(4)):
        assert torch.equal(step(saving, x), step(plain, x))
        plain(x)
    for ours, expected in zip(saving.body.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, expected)
    for ours, expected in zip(saving.body.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, expected.grad)
    assert plain[1].num_batches_tracked == 4


def test_momentum_that_makes_two_updates_one() -> None:
    """What recipes for BatchNorm under checkpointing do."""
    plain = net()
    saving = Checkpointed(copy.deepcopy(plain), reentrant=False)
    saving.body[1].momentum = 1 - math.sqrt(1 - plain[1].momentum)
    for x in (data(5), data(4)):
        step(saving, x)
        step(plain, x)
    for name in ("running_mean", "running_var"):
        assert_same(getattr(saving.body[1], name), getattr(plain[1], name))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("compiled", ["nothing", "the layer", "all"])
def test_checkpointing_counts_what_batchnorm_counts(compiled: str, last: bool) -> None:
    """Also where the layer is the last of the part, at whose end torch stops to compute again."""
    counts = []
    for kind in (nn.BatchNorm2d, rbnorm.RepresentativeBatchNorm2d):
        torch._dynamo.reset()
        layer = kind(2)
        compile = lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)  # noqa: E731
        norm = compile(layer) if compiled == "the layer" else layer
        body = norm if last else nn.Sequential(norm, nn.Sigmoid())
        part = Checkpointed(body, reentrant=False)
        step(compile(part) if compiled == "all" else part, data())
        counts.append(int(layer.num_batches_tracked))
    assert counts[0] == counts[1] == (1 if compiled == "all" else 2)


def test_functional_call_trains_on_given_state() -> None:
    model, expected = net(), net()
    parameters = dict(model.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    y = torch.func.functional_call(model, (parameters, buffers), (data(),))
    assert torch.equal(y, expected(data()))
    assert torch.equal(buffers["1.running_var"], expected[1].running_var)
    assert model[1].num_batches_tracked == 0


# One in-place operation of training has no rule of its own there and runs model by model.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("training", [True, False])
def test_vmap_over_models(training: bool) -> None:
    """Outputs and, in training, every model's own running statistics."""
    models = [net().train(training) for _ in range(3)]
    for i, model in enumerate(models):
        for parameter in model.parameters():
            parameter.data.add_(0.1 * i)
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    run = lambda p, b, x: torch.func.functional_call(base, (p, b), (x,))  # noqa: E731
    found = torch.func.vmap(run, (0, 0, None))(parameters, buffers, data())
    assert_same(found, torch.stack([model(data()) for model in models]))
    for name, buffer in buffers.items():
        assert_same(buffer, torch.stack([model.get_buffer(name) for model in models]))
    assert buffers["1.num_batches_tracked"].tolist() == [int(training)] * 3


def test_replace_all_batch_norm_modules() -> None:
    """Without running statistics, training can be differentiated by torch.func."""
    model = torch.func.replace_all_batch_norm_modules_(net())
    parameters = dict(model.named_parameters())
    loss = lambda p: torch.func.functional_call(model, p, (data(),)).square().sum()  # noqa: E731
    found = torch.func.grad(loss)(parameters)
    step(model, data())
    for name, parameter in model.named_parameters():
        assert_same(found[name], parameter.grad)
    assert model[1].running_mean is None


@pytest.mark.parametrize("way", ["initialised", "loaded"])
def test_deferred_initialisation(way: str) -> None:
    """Made on the meta device, then materialised and reset, or assigned: the usual layer."""
    with torch.device("meta"):
        model = net()
    if way == "loaded":
        model.load_state_dict(net().state_dict(), assign=True)
    else:
        model.to_empty(device="cpu")
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    for name, value in model[1].state_dict().items():
        assert torch.equal(value, net()[1].state_dict()[name])


@pytest.mark.parametrize(
    ("act", "axes", "strict"),
    [
        (False, (0,), False),
        (True, (0,), False),
        (False, (0, 2, 3), False),
        (False, (0, 2, 3), True),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_export(training: bool, act: bool, axes: tuple[int, ...], strict: bool) -> None:
    """One program for every batch and image size, the running statistics included."""
    model = net(act).train(training)
    sizes = ({axis: torch.export.Dim.DYNAMIC for axis in axes},)
    program = torch.export.export(model, (data(),), dynamic_shapes=sizes, strict=strict).module()
    x = torch.randn(7, 2, *((9, 12) if 2 in axes else (6, 6)))
    assert_same(program(x), model(x))
    if training:
        for ours, expected in zip(program.buffers(), model.buffers(), strict=True):
            assert_same(ours, expected)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_package_takes_the_library_as_external(tmp_path) -> None:
    model, path = net().eval(), tmp_path / "model.pt"
    with torch.package.PackageExporter(path) as exporter:
        exporter.extern(["torch.**", "rbnorm.**"])
        exporter.save_pickle("model", "model.pkl", model)
    loaded = torch.package.PackageImporter(path).load_pickle("model", "model.pkl")
    assert torch.equal(loaded(data()), model(data()))


@pytest.mark.parametrize("compiled", [False, True])
def test_forward_replaced_for_all_layers_is_refused(compiled: bool, monkeypatch) -> None:
    """As test-time adaptation replaces it; RBN's own would not run the new one."""
    layers = (rbnorm.RepresentativeBatchNorm2d(2), rbnorm.RepresentativeBatchNormAct2d(2))
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda norm, x: x)
    for layer in layers:
        torch._dynamo.reset()
        call = torch.compile(layer, backend="eager") if compiled else layer
        with pytest.raises(RuntimeError, match=r"BatchNorm2d\.forward was replaced, which Repres"):
            call(data())
        assert layer.num_batches_tracked == 0
    assert rbnorm.RepresentativeBatchNorm1d(2)(data()[..., 0]).shape == (5, 2, 6)
    monkeypatch.setattr(rbnorm.RepresentativeBatchNorm2d, "forward", nn.BatchNorm2d.forward)
    assert torch.equal(layers[0](data()), data())


def test_calls_that_somebody_counts_are_made(monkeypatch) -> None:
    """A fused activation is called, too, where ``nn.Module.__call__`` is not torch's."""
    seen, call = [], nn.Module.__call__

    def counted(module: nn.Module, *args: Any) -> Any:
        seen.append(type(module).__name__)
        return call(module, *args)

    monkeypatch.setattr(nn.Module, "__call__", counted)
    rbnorm.RepresentativeBatchNormAct2d(2)(data())
    assert seen == ["RepresentativeBatchNormAct2d", "Identity", "ReLU"]


def test_a_function_of_torch_that_rbn_does_not_call(monkeypatch) -> None:
    """Profilers put theirs in the place of ``F.batch_norm``, which would see no RBN layer."""
    layer = rbnorm.RepresentativeBatchNorm2d(2)
    expected = copy.deepcopy(layer)(data())
    monkeypatch.setattr(nn.functional, "batch_norm", None)
    assert torch.equal(layer(data()), expected)


class Doubling:
    """Gives something else for some attributes, as probabilistic and functional modules do."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return 2 * value if name in {"weight", "scale_bias", "running_mean"} else value


class Doubled(Doubling, rbnorm.RepresentativeBatchNorm2d):
    pass


@pytest.mark.parametrize("training", [True, False])
def test_a_class_that_reads_attributes_in_its_own_way_is_asked(training: bool) -> None:
    layer, expected = Doubled(2).train(training), rbnorm.RepresentativeBatchNorm2d(2)
    expected.train(training).running_mean.fill_(1)
    layer.load_state_dict(expected.state_dict())
    with torch.no_grad():
        for tensor in (expected.weight, expected.scale_bias, expected.running_mean):
            tensor.mul_(2)
    assert torch.equal(layer(data()), expected(data()))


def test_hooks_that_compare_statistics_need_those_of_z() -> None:
    """Inversion of a network matches the running mean to its input's; RBN's is that of z."""
    layer = net().train()[1]
    layer.momentum = 1.0
    x = torch.randn(5, 4, 6, 6) + 1
    layer(x)
    z = x + layer.center_weight[:, None, None] * x.mean((2, 3), keepdim=True)
    assert_same(layer.running_mean, z.mean((0, 2, 3)))
    assert_same(layer.running_var, z.var((0, 2, 3)))
    assert_same(layer.running_mean / (1 + layer.center_weight), x.mean((0, 2, 3)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_jit_script_is_refused() -> None:
    """Alone and within a model; the sentence names what works."""
    for module in (rbnorm.RepresentativeBatchNormAct2d(4), net()):
        with pytest.raises(NotImplementedError, match=r"use torch\.jit\.trace or torch\.export"):
            torch.jit.script(module)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("act", [True, False])
def test_jit_trace(act: bool) -> None:
    model = net(act).eval()
    traced = torch.jit.trace(model, data())
    assert_same(traced(data(7)), model(data(7)))


class Block(nn.Module):
    """The layer alone, or with a residual."""

    def __init__(self, residual: bool) -> None:
        super().__init__()
        kind = rbnorm.RepresentativeBatchNormAct2d if residual else rbnorm.RepresentativeBatchNorm2d
        self.norm, self.residual = kind(2), residual

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, x + 1) if self.residual else self.norm(x)


@pytest.mark.parametrize("residual", [True, False])
def test_fx_sees_one_node(residual: bool) -> None:
    model = Block(residual).eval()
    graph = torch.fx.symbolic_trace(model)
    assert [n.op for n in graph.graph.nodes if n.target == "norm"] == ["call_module"]
    assert graph.get_submodule("norm") is model.norm
    assert torch.equal(graph(data()), model(data()))


def test_fx_fusion_leaves_the_layer() -> None:
    model = net().eval()
    fused = fuse(model)
    assert rbnorm.assert_intact(fused, ["1"]) == ["1"]
    assert torch.equal(fused(data()), model(data()))


def test_fuse_modules_refuses() -> None:
    with pytest.raises(AssertionError, match=r"did not find fuser method for.*Representative"):
        quantization.fuse_modules(net().eval(), ["0", "1"])


def quantised(between: list[nn.Module]) -> nn.Sequential:
    model = net().eval()
    model = nn.Sequential(quantization.QuantStub(), model[0], *between, model[1])
    model.qconfig = quantization.get_default_qconfig("fbgemm")
    return model


ENGINE = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="needs fbgemm"
)


@ENGINE
@pytest.mark.filterwarnings("ignore")
def test_quantisation_leaves_the_layer_in_float() -> None:
    model = quantised([quantization.DeQuantStub()]).eval()
    expected = model(data())
    prepared = quantization.prepare(model)
    prepared(data())
    result = quantization.convert(prepared)
    assert (
        type(result[1]).__name__ == "QuantizedConv2d" or "quantized" in type(result[1]).__module__
    )
    assert type(result[3]) is rbnorm.RepresentativeBatchNorm2d
    assert result[3].weight.dtype == torch.float32
    assert (result(data()) - expected).abs().max() < 0.05


@ENGINE
@pytest.mark.filterwarnings("ignore")
def test_quantised_input_is_refused() -> None:
    prepared = quantization.prepare(quantised([]).eval())
    prepared(data())
    with pytest.raises(TypeError, match="float32 or float64, got quint8"):
        quantization.convert(prepared)(data())
