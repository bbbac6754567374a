"""The layers as BatchNorm layers: signature, state, modes, errors."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import timm
import torch
from cases import LAYERS, LAYOUTS, arrange
from torch import Tensor, nn
from torch.nn import functional as F

import rbnorm
from rbnorm.functional import representative_batch_norm

PAIRS = [
    (rbnorm.RepresentativeBatchNorm1d, nn.BatchNorm1d, (5, 3)),
    (rbnorm.RepresentativeBatchNorm1d, nn.BatchNorm1d, (5, 3, 4)),
    (rbnorm.RepresentativeBatchNorm2d, nn.BatchNorm2d, (5, 3, 4, 2)),
    (rbnorm.RepresentativeBatchNorm3d, nn.BatchNorm3d, (2, 3, 4, 2, 3)),
]
BATCHNORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
NEUTRAL = {"restrict": "identity"}  # w_m = w_v = 0 and R(w_b) = w_b = 1: BatchNorm


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
def test_positional_signature_is_batchnorms(ours: Any, theirs: Any, shape: Any) -> None:
    wanted = list(inspect.signature(theirs).parameters.values())
    found = list(inspect.signature(ours).parameters.values())
    for ours_p, theirs_p in zip(found, wanted, strict=False):
        assert (ours_p.name, ours_p.default) == (theirs_p.name, theirs_p.default)
        assert ours_p.kind == theirs_p.kind
    assert {p.kind for p in found[len(wanted) :]} == {inspect.Parameter.KEYWORD_ONLY}
    assert issubclass(ours, theirs)


def test_positional_signature_of_the_norm_act_layer_is_timms() -> None:
    found, wanted = (
        [(p.name, p.default) for p in inspect.signature(kind).parameters.values()]
        for kind in (rbnorm.RepresentativeBatchNormAct2d, timm.layers.BatchNormAct2d)
    )
    assert found[: len(wanted)] == wanted


def outcome(layer: nn.Module, inputs: list[Tensor]) -> list[Any]:
    """Everything observable of a few calls: outputs or the kind of error, then the buffers."""
    seen: list[Any] = []
    for x in inputs:
        try:
            seen.append(layer(x))
        except ValueError as error:
            seen.append(str(error)[:40])
    return [*seen, layer.running_mean, layer.running_var, layer.num_batches_tracked]


MISSING = {
    "kept": (),
    "statistics": ("running_mean", "running_var"),
    "counter": ("num_batches_tracked",),
    "all": ("running_mean", "running_var", "num_batches_tracked"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("built_tracking", [True, False])
@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("momentum", [0.1, None, 1.0])
def test_truth_table_is_batchnorms(training, track, built_tracking, missing, momentum) -> None:
    """Over two layers, track switched off after the fact included, the behaviour is the same."""
    torch.manual_seed(0)
    inputs = list(torch.randn(3, 4, 3, 2, 2, dtype=torch.float64).unbind())
    options = {"momentum": momentum, "track_running_stats": built_tracking, "dtype": torch.float64}
    results = []
    for layer in (
        rbnorm.RepresentativeBatchNorm2d(3, **options, **NEUTRAL),
        nn.BatchNorm2d(3, **options),
    ):
        layer.track_running_stats = track
        for name in MISSING[missing]:
            setattr(layer, name, None)
        results.append(outcome(layer.train(training), inputs))
    for ours, theirs in zip(*results, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, Tensor):
            assert torch.allclose(ours.double(), theirs.double(), rtol=0, atol=1e-12)
        else:
            assert ours == theirs


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_raises_batchnorms_error(shape: tuple[int, ...]) -> None:
    ours = LAYERS[len(shape)](3)
    message = r"Expected more than 1 value per channel when training, got input size"
    with pytest.raises(ValueError, match=message):
        ours(torch.ones(shape))
    assert ours.num_batches_tracked == 0
    with pytest.raises(ValueError, match=message):
        F.batch_norm(torch.ones(shape), None, None, training=True)
    assert ours.eval()(torch.ones(shape)).shape == shape


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format_is_batchnorms(ours: Any, theirs: Any, shape: Any, layout: str) -> None:
    x = arrange(torch.randn(shape), layout)
    y, expected = ours(3, **NEUTRAL)(x), theirs(3)(x)
    assert y.stride() == expected.stride()
    assert torch.allclose(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (0, 3, 4, 5), (2, 3, 0, 5), (0, 3, 1, 2, 3)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("statistic", ["mean", "max"])
def test_empty_batch(shape: tuple[int, ...], training: bool, statistic: str) -> None:
    """As in BatchNorm: empty output, zero gradients, statistics alone, but the batch is counted."""
    layer = LAYERS[len(shape)](3, statistic=statistic).train(training)
    layer.running_mean.fill_(2)
    x = torch.empty(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad is not None
    for parameter in layer.parameters():
        assert torch.equal(parameter.grad, torch.zeros(3))
    theirs = BATCHNORMS[len(shape)](3).train(training)
    theirs.running_mean.fill_(2)
    theirs(x)
    assert all(map(torch.equal, layer.buffers(), theirs.buffers()))


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({}, set()),
        ({"center": False}, {"center_weight"}),
        ({"scale": False}, {"scale_weight", "scale_bias"}),
        ({"affine": False}, {"weight", "bias"}),
        ({"bias": False}, {"bias"}),
    ],
)
def test_parameters_are_vectors_with_the_papers_initial_values(options, absent) -> None:
    if "bias" in options and "bias" not in inspect.signature(nn.BatchNorm2d).parameters:
        with pytest.raises(TypeError, match="bias"):  # releases of torch without the argument
            rbnorm.RepresentativeBatchNorm2d(3, **options)
        return
    layer = rbnorm.RepresentativeBatchNorm2d(3, **options)
    initial = {"weight": 1, "bias": 0, "center_weight": 0, "scale_weight": 0, "scale_bias": 1}
    expected = {name: [value] * 3 for name, value in initial.items() if name not in absent}
    assert {n: p.tolist() for n, p in layer.named_parameters()} == expected
    buffers = ["running_mean", "running_var", "num_batches_tracked"]
    assert layer.state_dict().keys() == {*expected, *buffers}
    x = torch.randn(2, 3, 4, 4)
    gate = 1.0 if "scale_bias" in absent else 0.7310585786
    assert torch.allclose(layer(x), gate * nn.BatchNorm2d(3)(x), rtol=0, atol=1e-6)


def test_reset_parameters_restores_the_given_initial_values() -> None:
    layer = rbnorm.RepresentativeBatchNorm1d(
        2, center_weight_init=0.5, scale_weight_init=-1.0, scale_bias_init=2.0
    )
    expected = copy.deepcopy(layer.state_dict())
    layer(torch.randn(4, 2))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer.reset_parameters()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, expected[name])
    assert layer.center_weight.tolist() == [0.5, 0.5]
    assert layer.scale_weight.tolist() == [-1, -1]
    assert layer.scale_bias.tolist() == [2, 2]


def test_repr_shows_what_differs_from_the_default() -> None:
    plain = repr(rbnorm.RepresentativeBatchNorm2d(3))
    assert plain == repr(nn.BatchNorm2d(3)).replace("BatchNorm", "RepresentativeBatchNorm")
    layer = rbnorm.RepresentativeBatchNorm2d(3, center=False, restrict="tanh", scale_bias_init=2.0)
    assert repr(layer).endswith(", center=False, restrict=tanh, scale_bias_init=2.0)")


@pytest.mark.parametrize("statistic", ["mean", torch.sin])
def test_copies_and_pickles_behave_the_same(statistic: Any) -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(3, statistic=statistic, restrict="tanh")
    x = torch.randn(4, 3, 5, 5)
    layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin.train()(x), copy.deepcopy(layer)(x))
        assert torch.equal(twin.running_mean, copy.deepcopy(twin).running_mean)


def test_device_and_dtype_reach_every_tensor() -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(3, device="meta", dtype=torch.float64)
    tensors = dict(layer.state_dict())
    assert tensors.pop("num_batches_tracked").is_meta
    assert all(t.is_meta and t.dtype == torch.float64 for t in tensors.values())
    assert layer(torch.empty(2, 3, 4, 4, device="meta")).shape == (2, 3, 4, 4)
    real = layer.to_empty(device="cpu")
    real.reset_parameters()
    assert real.scale_bias.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layer_in_another_dtype(dtype: torch.dtype) -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(3).to(dtype)
    x = torch.randn(4, 3, 5, 5, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert all(p.grad.dtype == dtype for p in layer.parameters())


ACT = [
    ({"act_layer": nn.SiLU}, F.silu),
    ({"apply_act": False}, lambda x: x),
    ({"act_layer": None}, lambda x: x),
    ({"act_layer": nn.Softsign}, F.softsign),  # has no `inplace`
    ({"act_layer": nn.GELU}, F.gelu),
    (
        {"act_layer": nn.LeakyReLU, "act_kwargs": {"negative_slope": 0.5}},
        lambda x: F.leaky_relu(x, 0.5),
    ),
]


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize(("options", "activate"), ACT)
def test_act_layer_activates_after_normalising(options, activate, heard: bool) -> None:
    """In the op, and by a call of its own where somebody listens to it."""
    torch.manual_seed(0)
    x, residual = torch.randn(2, 4, 3, 5, 5).unbind()
    layer, calls = rbnorm.RepresentativeBatchNormAct2d(3, drop_layer=nn.Identity, **options), []
    if heard:
        layer.act.register_forward_hook(lambda *_: calls.append(True))
    z = rbnorm.RepresentativeBatchNorm2d(3)(x)
    assert torch.allclose(layer(x), activate(z), rtol=0, atol=1e-6)
    assert torch.allclose(layer(x, residual), activate(z + residual), rtol=0, atol=1e-6)
    assert getattr(layer.act, "inplace", True)
    assert len(calls) == 2 * heard


def test_residual_and_activation_are_part_of_the_op() -> None:
    """Half results are rounded once: on their own they would round three times."""
    torch.manual_seed(0)
    x, residual = torch.randn(2, 4, 3, 5, 5).bfloat16().unbind()
    layer = rbnorm.RepresentativeBatchNormAct2d(3, act_layer=nn.SiLU, scale=False, affine=False)
    given = {"training": True, "residual": residual, "activation": "silu"}
    expected = representative_batch_norm(x, None, None, **given)
    assert torch.equal(layer(x, residual), expected)
    apart = F.silu(representative_batch_norm(x, None, None, training=True) + residual)
    assert not torch.equal(apart, expected)


def test_drop_layer_acts_before_residual_and_activation() -> None:
    x, residual = torch.randn(2, 4, 3, 5, 5).unbind()
    layer = rbnorm.RepresentativeBatchNormAct2d(3, drop_layer=lambda: nn.Dropout(p=1.0))
    assert torch.equal(layer(x, residual), F.relu(residual))


LAZY = [
    (rbnorm.LazyRepresentativeBatchNorm1d, rbnorm.RepresentativeBatchNorm1d, (4, 3, 5)),
    (rbnorm.LazyRepresentativeBatchNorm2d, rbnorm.RepresentativeBatchNorm2d, (4, 3, 5, 2)),
    (rbnorm.LazyRepresentativeBatchNorm3d, rbnorm.RepresentativeBatchNorm3d, (4, 3, 5, 2, 2)),
]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")  # torch's own warning
@pytest.mark.parametrize(("lazy", "eager", "shape"), LAZY)
@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False, "scale": False}, {"track_running_stats": False, "scale_bias_init": 2.0}],
)
def test_lazy_layer_becomes_the_eager_one(
    lazy: Any, eager: Any, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    layer, twin = lazy(**options), eager(3, **options)
    x = torch.randn(shape)
    assert torch.equal(layer(x), twin(x))
    assert type(layer) is eager
    assert repr(layer) == repr(twin)
    for name, value in twin.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, rbnorm.RepresentativeBatchNorm2d])
def test_lazy_layer_keeps_what_it_loads(kind: Any) -> None:
    source, layer = kind(3).eval(), rbnorm.LazyRepresentativeBatchNorm2d()
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    layer.load_state_dict(source.state_dict())
    expected = rbnorm.RepresentativeBatchNorm2d(3).eval()
    expected.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer.eval()(x), expected(x))
    assert layer.num_features == 3


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layer_takes_no_size_from_a_bad_input() -> None:
    layer = rbnorm.LazyRepresentativeBatchNorm2d()
    with pytest.raises(ValueError, match="expected 4D input"):
        layer(torch.randn(2, 3))
    assert layer(torch.randn(2, 5, 4, 4)).shape == (2, 5, 4, 4)
    assert layer.num_features == 5


@pytest.mark.parametrize("layer_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_evaluation_in_a_dtype_unlike_the_layers(
    layer_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(2).to(layer_dtype).eval()
    layer.running_mean.fill_(0.5)
    x = torch.randn(3, 2, 4, 4).to(dtype)
    y = layer(x)
    wide = rbnorm.RepresentativeBatchNorm2d(2, dtype=torch.float64).eval()
    wide.load_state_dict(layer.state_dict())
    assert y.dtype == dtype
    tolerance = {torch.float16: 2e-3, torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    assert torch.allclose(y.double(), wide(x.double()), rtol=0, atol=tolerance)
