"""BatchNorm to RBN on whole models: the function, and everything else that must not change."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from models import norms, shake, small
from processes import python
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import rbnorm

CALIBRATION = {"center_weight", "scale_weight", "scale_bias"}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet18": torchvision.models.resnet18,
    "torchvision mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "torchvision densenet121": torchvision.models.densenet121,
    "torchvision regnet_y_400mf": torchvision.models.regnet_y_400mf,
    "torchvision r3d_18": torchvision.models.video.r3d_18,
    "timm resnet10t": lambda: timm.create_model("resnet10t"),
    "timm efficientnet_lite0": lambda: timm.create_model("efficientnet_lite0"),
    "timm mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050"),
    "timm regnetx_002": lambda: timm.create_model("regnetx_002"),
    "timm levit_128s": lambda: timm.create_model("levit_128s"),
}


@pytest.mark.parametrize("name", MODELS)
def test_function_is_preserved(name: str) -> None:
    """Outputs before and after agree to float32 rounding, on models with 1d, 2d, 3d, norm-act."""
    torch.manual_seed(0)
    model = shake(MODELS[name]()).eval()
    size = {"torchvision r3d_18": (1, 3, 4, 32, 32), "timm levit_128s": (1, 3, 224, 224)}
    x = torch.randn(size.get(name, (2, 3, 64, 64)))
    wanted = len(norms(model))
    with torch.no_grad():
        before = model(x)
        after = rbnorm.convert_batchnorm(model)(x)
    converted = norms(model)
    assert len(converted) == wanted > 3
    assert all("Representative" in type(m).__name__ for m in converted)
    # A hundred layers of float32 rounding, 6e-8 each, partly adding up.
    assert (after - before).abs().max().item() <= 1e-5 * before.abs().max().item()


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm3d(4, affine=False, track_running_stats=False, eps=1e-2),
    ],
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("restrict", ["sigmoid", "tanh", "softsign", torch.exp])
def test_each_layer_preserves_its_function(layer: nn.Module, training: bool, restrict: Any) -> None:
    layer = shake(copy.deepcopy(layer)).double().train(training)
    rank = {nn.BatchNorm1d: 2, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}[type(layer)]
    # A layer without a tensor has no dtype, and its constant is a float32.
    dtype = torch.float64 if layer.state_dict() else torch.float32
    x = torch.randn(5, 4, 3, 2, 2, dtype=dtype)[(..., *([0] * (5 - rank)))]
    expected = copy.deepcopy(layer)(x)
    assert rbnorm.convert_batchnorm(layer, restrict=restrict) is layer
    atol = {torch.float64: 1e-13, torch.float32: 2e-6}[dtype]
    assert torch.allclose(layer(x), expected, rtol=0, atol=atol)


def test_gamma_is_divided_by_the_gate_or_kept() -> None:
    """preserve=False is the paper's start: the same parameters as a fresh RBN layer."""
    layer = rbnorm.convert_batchnorm(nn.BatchNorm2d(2), scale_bias_init=2.0)
    assert layer.weight.tolist() == pytest.approx([1 / 0.8807970779778823] * 2)
    assert layer.scale_bias.tolist() == [2, 2]
    layer = rbnorm.convert_batchnorm(nn.BatchNorm2d(2), preserve=False)
    for name, value in rbnorm.RepresentativeBatchNorm2d(2).state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)


@pytest.mark.parametrize(
    "where",
    [None, "layer4.*", lambda name: name.startswith("layer4.")],
    ids=["all", "glob", "function"],
)
def test_options_reach_every_layer_that_is_selected(where: Any) -> None:
    model = torchvision.models.resnet18()
    rbnorm.convert_batchnorm(model, where=where, center=False, restrict="tanh", scale_bias_init=0.5)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            converted = isinstance(layer, rbnorm.RepresentativeBatchNorm2d)
            assert converted == (where is None or name.startswith("layer4."))
            if converted:
                assert layer.center_weight is None
                assert (layer.calibration.restrict, layer.scale_bias[0]) == ("tanh", 0.5)


def test_what_batchnorm_had_is_kept() -> None:
    """Flags, requires_grad, dtype, eps, momentum, hooks, optimizer references, module identity."""
    layer = nn.BatchNorm2d(4, eps=0.01, momentum=None, dtype=torch.float64).eval()
    layer.bias.requires_grad_(False)
    layer.extra = "kept"
    calls: list[str] = []
    handle = layer.register_forward_hook(lambda *_: calls.append("hook"))
    optimizer = torch.optim.SGD([layer.weight], 0.1)
    model = nn.Sequential(layer)
    rbnorm.convert_batchnorm(model)
    assert model[0] is layer
    assert (layer.eps, layer.momentum, layer.training, layer.extra) == (0.01, None, False, "kept")
    assert optimizer.param_groups[0]["params"][0] is layer.weight
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad
    for name in CALIBRATION:
        assert getattr(layer, name).dtype == torch.float64
        assert getattr(layer, name).requires_grad
    model(torch.randn(2, 4, 3, 3, dtype=torch.float64))
    assert calls == ["hook"]
    handle.remove()
    model(torch.randn(2, 4, 3, 3, dtype=torch.float64))
    assert calls == ["hook"]


def test_frozen_layer_stays_frozen_and_device_is_kept() -> None:
    model = rbnorm.convert_batchnorm(small().requires_grad_(False).to("meta"))
    assert not any(p.requires_grad for p in model[1].parameters())
    assert all(tensor.is_meta for tensor in model[1].state_dict().values())


def shared(**options: Any) -> nn.Sequential:
    norm = shake(nn.BatchNorm2d(4, **options))
    return nn.Sequential(norm, nn.ReLU(), norm)


def tied() -> nn.Sequential:
    model = nn.Sequential(shake(nn.BatchNorm2d(4)), nn.ReLU(), nn.BatchNorm2d(4))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("make", [shared, lambda: shared(affine=False), tied])
def test_what_is_shared_is_converted_and_divided_once(make: Callable[[], nn.Module]) -> None:
    model, x = make().eval(), torch.randn(2, 4, 3, 3)
    same, expected = model[0] is model[2], model(x)
    rbnorm.convert_batchnorm(model)
    assert (model[0] is model[2]) == same
    assert model[0].weight is model[2].weight
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_layer_without_tensors_takes_the_models_dtype(dtype: torch.dtype) -> None:
    norm = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), norm).to(dtype)
    rbnorm.convert_batchnorm(model)
    assert {tensor.dtype for tensor in model[1].state_dict().values()} == {dtype}


def test_weight_shared_with_something_else_is_refused() -> None:
    """Dividing it would change what is not converted."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="divides the weight of layer '0'"):
        rbnorm.convert_batchnorm(model, where="0")
    assert type(model[0]) is nn.BatchNorm2d
    assert model[1].weight.tolist() == [1, 1, 1, 1]
    rbnorm.convert_batchnorm(model, preserve=False, where="0")


def test_second_conversion_changes_nothing() -> None:
    model = rbnorm.convert_batchnorm(small())
    model[1].scale_bias.data.fill_(3)
    before = copy.deepcopy(model[1].state_dict())
    rbnorm.convert_batchnorm(model)
    assert all(torch.equal(v, before[k]) for k, v in model[1].state_dict().items())


def test_subclass_with_torchs_forward_is_converted() -> None:
    layer = type("Named", (nn.BatchNorm2d,), {})(3)
    assert type(rbnorm.convert_batchnorm(layer)) is rbnorm.RepresentativeBatchNorm2d


def test_constant_of_a_layer_without_gamma_is_state_but_not_learnt() -> None:
    layer = rbnorm.convert_batchnorm(nn.BatchNorm2d(4, affine=False))
    assert {name for name, _ in layer.named_parameters()} == CALIBRATION
    assert layer.weight.tolist() == pytest.approx([1 / 0.7310585786300049] * 4)
    twin = rbnorm.convert_batchnorm(nn.BatchNorm2d(4, affine=False))
    twin.load_state_dict(layer.state_dict())
    twin.load_state_dict(nn.BatchNorm2d(4, affine=False).state_dict())
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"weight"'):
        rbnorm.RepresentativeBatchNorm2d(4, affine=False).load_state_dict(layer.state_dict())


def own(name: str) -> nn.Module:
    """Of a class with a method of its own."""
    return type("Own", (nn.BatchNorm2d,), {name: lambda norm, x: x})(4)


def with_attribute(name: str, value: object) -> nn.Module:
    layer = nn.BatchNorm2d(4)
    setattr(layer, name, value)
    return layer


def of_inference() -> nn.Module:
    with torch.inference_mode():
        return nn.BatchNorm2d(4)


CANNOT = "that cannot become RBN"
REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: own("forward"), f"layer '1' is a Own {CANNOT}"),
    (lambda: own("__call__"), f"layer '1' is a Own {CANNOT}"),
    (lambda: own("_check_input_dim"), f"layer '1' is a Own {CANNOT}"),
    (lambda: with_attribute("forward", abs), f"layer '1' is a BatchNorm2d {CANNOT}"),
    (lambda: with_attribute("scale_bias", 0), f"layer '1' is a BatchNorm2d {CANNOT}"),
    (lambda: prune.l1_unstructured(nn.BatchNorm2d(4), "weight", 1), f"a BatchNorm2d {CANNOT}"),
    (lambda: weight_norm(nn.BatchNorm2d(4), dim=None), f"a ParametrizedBatchNorm2d {CANNOT}"),
    (of_inference, "layer '1' cannot be trained when it is made or converted in inference"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_layer_that_cannot_be_converted_changes_nothing(
    make: Callable[[], nn.Module], message: str
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), make())
    with pytest.raises(ValueError, match=re.escape(message)):
        rbnorm.convert_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d
    assert model[0].weight.tolist() == [1, 1, 1, 1]
    rbnorm.convert_batchnorm(model, where="0")


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_layer_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="run the model on one batch first"):
        rbnorm.convert_batchnorm(nn.Sequential(nn.LazyBatchNorm2d()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center_weight_init": 0.1}, "must be 0 to preserve the function, and"),
        ({"scale_weight_init": 0.1}, "got 0.0, 0.1 and"),
        ({"restrict": "tanh", "scale_bias_init": 0.0}, "must be finite and not 0"),
        ({"restrict": "relu"}, "restrict must be one of"),
        ({"where": "layer9.*"}, "that where='layer9.*' selects"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    model = small()
    with pytest.raises(ValueError, match=re.escape(message)):
        rbnorm.convert_batchnorm(model, **options)
    assert type(model[1]) is nn.BatchNorm2d


def test_model_without_batchnorm() -> None:
    with pytest.raises(ValueError, match="model must have a BatchNorm layer, got Linear"):
        rbnorm.convert_batchnorm(nn.Linear(2, 2))


def test_timm_is_not_imported_by_the_library() -> None:
    code = "import sys, rbnorm; assert not {'timm', 'torchvision', 'rich'} & set(sys.modules)"
    python("-c", code)


def test_synchronised_layer_stays_so() -> None:
    layer = rbnorm.convert_batchnorm(nn.SyncBatchNorm(4, process_group="a group"))
    assert type(layer) is rbnorm.SyncRepresentativeBatchNorm
    assert layer.process_group == "a group"


def test_a_model_in_distributed_data_parallel_is_refused(tmp_path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Sequential(DistributedDataParallel(nn.Sequential(nn.BatchNorm1d(2))))
        with pytest.raises(ValueError, match="its module '0' is wrapped in DistributedDataP"):
            rbnorm.convert_batchnorm(model)
        with pytest.raises(ValueError, match="the model is wrapped"):
            rbnorm.convert_batchnorm(model[0])
        assert type(model[0].module[0]) is nn.BatchNorm1d
    finally:
        dist.destroy_process_group()


def test_conversion_in_inference_mode_is_refused() -> None:
    layer = nn.BatchNorm2d(4)
    with torch.inference_mode(), pytest.raises(ValueError, match="convert the model outside of it"):
        rbnorm.convert_batchnorm(layer)
    assert type(layer) is nn.BatchNorm2d
