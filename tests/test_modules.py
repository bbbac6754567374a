"""The layers as BatchNorm layers: signature, state, modes, errors."""

import copy
import inspect
import itertools
import pickle
import warnings
from typing import Any

import pytest
import torch
from cases import LAYERS, LAYOUTS, arrange
from torch import Tensor, nn
from torch.nn import functional as F

import rbnorm

PAIRS = [
    (rbnorm.RepresentativeBatchNorm1d, nn.BatchNorm1d, (5, 3)),
    (rbnorm.RepresentativeBatchNorm1d, nn.BatchNorm1d, (5, 3, 4)),
    (rbnorm.RepresentativeBatchNorm2d, nn.BatchNorm2d, (5, 3, 4, 2)),
    (rbnorm.RepresentativeBatchNorm3d, nn.BatchNorm3d, (2, 3, 4, 2, 3)),
]
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


def outcome(layer: nn.Module, inputs: list[Tensor]) -> list[Any]:
    """Everything observable of a few calls: outputs or the kind of error, then the buffers."""
    seen: list[Any] = []
    for x in inputs:
        try:
            seen.append(layer(x))
        except ValueError as error:
            seen.append(str(error)[:40])
    return [*seen, layer.running_mean, layer.running_var, layer.num_batches_tracked]


TRUTH_TABLE = list(
    itertools.product(
        [True, False], [True, False], ["kept", "statistics", "counter", "all"], [0.1, None, 1.0]
    )
)


@pytest.mark.parametrize(("training", "track", "missing", "momentum"), TRUTH_TABLE)
def test_truth_table_is_batchnorms(
    training: bool, track: bool, missing: str, momentum: float | None
) -> None:
    """Over two layers, track switched off after the fact included, the behaviour is the same."""
    torch.manual_seed(0)
    inputs = list(torch.randn(3, 4, 3, 2, 2, dtype=torch.float64).unbind())
    results = []
    for make in (
        lambda **k: rbnorm.RepresentativeBatchNorm2d(3, **k, **NEUTRAL),
        lambda **k: nn.BatchNorm2d(3, **k),
    ):
        for built_tracking in (True, False):
            layer = make(momentum=momentum, track_running_stats=built_tracking, dtype=torch.float64)
            layer.track_running_stats = track
            if missing in {"statistics", "all"}:
                layer.running_mean = layer.running_var = None
            if missing in {"counter", "all"}:
                layer.num_batches_tracked = None
            results.append(outcome(layer.train(training), inputs))
    for ours, theirs in zip(results[:2], results[2:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert type(a) is type(b)
            if isinstance(a, Tensor):
                assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e-12)
            else:
                assert a == b


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
    assert layer.running_mean.tolist() == [2, 2, 2]
    assert layer.running_var.tolist() == [1, 1, 1]
    assert layer.num_batches_tracked.item() == int(training)


def test_empty_batch_counts_like_batchnorm() -> None:
    theirs = nn.BatchNorm2d(3)
    theirs(torch.empty(0, 3, 4, 4))
    assert theirs.num_batches_tracked == 1
    assert theirs.running_mean.tolist() == [0, 0, 0]


def test_parameters_are_vectors_with_the_papers_initial_values() -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(3)
    expected = {"weight": 1, "bias": 0, "center_weight": 0, "scale_weight": 0, "scale_bias": 1}
    assert {n: p.tolist() for n, p in layer.named_parameters()} == {
        n: [v] * 3 for n, v in expected.items()
    }
    buffers = [name for name, _ in layer.named_buffers()]
    assert buffers == ["running_mean", "running_var", "num_batches_tracked"]


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"center": False}, {"center_weight"}),
        ({"scale": False}, {"scale_weight", "scale_bias"}),
        ({"affine": False}, {"weight", "bias"}),
    ],
)
def test_ablated_parameters_are_absent(options: dict[str, bool], absent: set[str]) -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(3, **options)
    full = {"weight", "bias", "center_weight", "scale_weight", "scale_bias"}
    assert {name for name, _ in layer.named_parameters()} == full - absent
    assert absent.isdisjoint(layer.state_dict())
    assert layer(torch.randn(2, 3, 4, 4)).isfinite().all()


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


def test_bias_argument_follows_torchs_batchnorm() -> None:
    """Releases of torch without the argument raise its own TypeError."""
    if "bias" not in inspect.signature(nn.BatchNorm2d).parameters:
        with pytest.raises(TypeError, match="bias"):
            rbnorm.RepresentativeBatchNorm2d(3, bias=False)
        return
    layer = rbnorm.RepresentativeBatchNorm2d(3, bias=False)
    assert layer.bias is None
    x = torch.randn(2, 3, 4, 4)
    expected = 0.7310585786 * nn.BatchNorm2d(3, bias=False)(x)
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-6)


def test_act_layer_activates_after_normalising() -> None:
    torch.manual_seed(0)
    plain = rbnorm.RepresentativeBatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    layer = rbnorm.RepresentativeBatchNormAct2d(3, act_layer=nn.SiLU)
    assert torch.allclose(layer(x), F.silu(plain(x)), rtol=0, atol=1e-6)
    assert torch.equal(rbnorm.RepresentativeBatchNormAct2d(3, apply_act=False)(x), plain(x))
    assert torch.equal(rbnorm.RepresentativeBatchNormAct2d(3, act_layer=None)(x), plain(x))
    other = rbnorm.RepresentativeBatchNormAct2d(3, act_layer=nn.Softsign)  # has no `inplace`
    assert torch.equal(other(x), F.softsign(plain(x)))
    gelu = rbnorm.RepresentativeBatchNormAct2d(3, act_layer=nn.GELU)
    assert torch.allclose(gelu(x), F.gelu(plain(x)), rtol=0, atol=1e-6)
    leaky = rbnorm.RepresentativeBatchNormAct2d(
        3, act_layer=nn.LeakyReLU, act_kwargs={"negative_slope": 0.5}, drop_layer=nn.Identity
    )
    assert leaky.act.inplace
    assert torch.allclose(leaky(x), F.leaky_relu(plain(x), 0.5), rtol=0, atol=1e-6)


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
def test_lazy_layer_loads_a_batchnorm_checkpoint() -> None:
    source = nn.BatchNorm2d(3)
    nn.init.normal_(source.weight)
    layer = rbnorm.LazyRepresentativeBatchNorm2d()
    layer.load_state_dict(source.state_dict())
    assert torch.equal(layer.weight, source.weight)
    assert layer.scale_bias.tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layer_keeps_the_calibration_it_loads() -> None:
    source = rbnorm.RepresentativeBatchNorm2d(3).eval()
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    layer = rbnorm.LazyRepresentativeBatchNorm2d()
    layer.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer.eval()(x), source(x))
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


def test_traced_layer_computes_the_same() -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(3, scale_weight_init=0.3).eval()
    x = torch.randn(2, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecation of its own tracer
        traced = torch.jit.trace(layer, x)
    assert torch.allclose(traced(2 * x), layer(2 * x), rtol=0, atol=1e-6)
