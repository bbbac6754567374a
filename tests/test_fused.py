"""The layer's ops on the CPU, in C++ and portable, against the literal definition in float64."""

import inspect
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fused
import pytest
import torch
from cases import DTYPES, LAYOUTS, Case, arrange, cases
from direct import ON
from fused import ACTIVATIONS, RESTRICTIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import python
from tolerances import assert_close
from torch import Tensor
from torch.nn import functional as F

import rbnorm
from rbnorm.elementwise import ACTIVATION_OF
from rbnorm.functional import representative_batch_norm

DY_LAYOUTS = [layout for layout in LAYOUTS if layout != "expanded"]
BASE = Case((5, 3, 4, 5), torch.float32, "contiguous", True, {"eps": 1e-3}, 0)
FOUND = rbnorm.backends()["cpu"]
HAS_BIAS = "bias" in inspect.signature(torch.nn.BatchNorm2d).parameters


@pytest.fixture(scope="module", params=["c++", "portable"])
def ops(request: pytest.FixtureRequest) -> Any:
    """What provides ``forward``, ``inference`` and ``backward``."""
    if request.param not in ON:
        pytest.skip(FOUND.why)
    return ON[request.param]


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def forward(ops: Any, x: Tensor, training: bool = True, activation: int = 0) -> Any:
    """A layer without parameters, whose running statistics are 0 and 1."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    running = torch.zeros(x.shape[1], dtype=wide), torch.ones(x.shape[1], dtype=wide)
    return ops.forward(x, *[None] * 6, *running, training, 0.1, 1e-5, 0, activation, 0.1)


def step(ops: Any, x: Tensor, training: bool = True, activation: int = 0) -> list[Tensor]:
    """Forward and backward of a layer that has everything, on random values."""
    generator = torch.Generator().manual_seed(1)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    vectors = torch.randn(5, x.shape[1], generator=generator, dtype=wide).unbind()
    dy, residual = torch.randn(2, *x.shape, generator=generator).to(x.dtype).unbind()
    running = torch.zeros(x.shape[1], dtype=wide), torch.ones(x.shape[1], dtype=wide)
    tail = (1e-3, 0, activation, 0.1)
    y, m, E, V = ops.forward(x, residual, *vectors, *running, training, 0.1, *tail)
    kept = residual if activation else None
    rest = ops.backward(dy, x, kept, m, E, V, *vectors, training, *tail, True, activation > 0)
    return [y, m, E, V, *running, *rest]


@given(cases(), st.sampled_from(sorted(ACTIVATIONS)), st.booleans(), st.sampled_from(DY_LAYOUTS))
@settings(max_examples=100, deadline=None)
def test_equals_definition(
    ops: Any, case: Case, activation: str, with_residual: bool, dy_layout: str
) -> None:
    fused.compare(ops, case, activation, with_residual, dy_layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(
    ops: Any, activation: str, with_residual: bool, training: bool, dtype: torch.dtype
) -> None:
    fused.compare(ops, replace(BASE, dtype=dtype, training=training), activation, with_residual)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("restrict", RESTRICTIONS)
def test_every_restriction(ops: Any, restrict: str, training: bool, dtype: torch.dtype) -> None:
    options = {**BASE.options, "restrict": restrict}
    fused.compare(ops, replace(BASE, dtype=dtype, options=options, training=training), "relu", True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"affine": False},
        {"bias": False} if HAS_BIAS else {},
        {"center": False},
        {"scale": False},
        {"affine": False, "center": False, "scale": False},
        {"track_running_stats": False},
    ],
    ids=str,
)
def test_absent_vectors(ops: Any, options: dict[str, bool], training: bool) -> None:
    fused.compare(
        ops, replace(BASE, options={"eps": 1e-3, **options}, training=training), "silu", True
    )


@pytest.mark.parametrize("shape", [(3, 18, 4, 5), (2, 3, 3, 2, 4), (4, 5, 6), (6, 19)], ids=str)
@pytest.mark.parametrize("dy_layout", DY_LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(ops: Any, layout: str, dy_layout: str, shape: tuple[int, ...]) -> None:
    for training in (True, False):
        case = replace(BASE, shape=shape, layout=layout, training=training)
        fused.compare(ops, case, "leaky_relu", True, dy_layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("arranged", ["positions", "channels", "channels last"])
def test_sizes_around_the_widths_of_vectors(
    ops: Any, arranged: str, activation: str, dtype: torch.dtype
) -> None:
    for size in range(1, 68):
        shape = {
            "positions": (3, 2, size),
            "channels": (3, size),
            "channels last": (2, size, 3, 3),
        }[arranged]
        layout = "channels_last" if arranged == "channels last" else "contiguous"
        case = replace(BASE, shape=shape, dtype=dtype, layout=layout, training=size % 2 == 0)
        fused.compare(ops, case, activation, activation == "silu")


# Where one channel's, one instance's, or all of the data is cut into parts.
CUT = {
    "one map in chunks": ((1, 1, 3 * 8192 + 5), "contiguous"),
    "maps in chunks": ((2, 3, 90, 100), "contiguous"),
    "several chunks of every map": ((1, 2, 151, 203), "contiguous"),
    "two values": ((2, 1, 1, 1), "contiguous"),
    "one channel": ((7, 1, 33, 33), "contiguous"),
    "many rows": ((3001, 3), "contiguous"),
    "many instances": ((1500, 3, 3), "contiguous"),
    "many channels": ((2, 301, 5), "contiguous"),
    "7x7": ((4, 65, 7, 7), "contiguous"),
    "channels in units": ((3, 37, 20, 21), "contiguous"),
    "rows in chunks": ((2, 65, 47, 51), "channels_last"),
    "few channels, rows in chunks": ((1, 3, 217, 223), "channels_last"),
    "part of the channels": ((3, 519, 3, 3), "channels_last"),
    "least chunk": ((1, 8209, 5, 5), "channels_last"),
    "rows of a volume": ((2, 67, 11, 13, 17), "channels_last"),
}


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CUT)
def test_data_cut_into_parts(ops: Any, name: str, training: bool, threads: int) -> None:
    shape, layout = CUT[name]
    case = replace(BASE, shape=shape, layout=layout, training=training)
    fused.compare(ops, case, "relu" if threads == 2 else "none", threads == 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["several chunks of every map", "rows in chunks", "7x7"])
def test_parts_of_other_types(ops: Any, name: str, dtype: torch.dtype) -> None:
    shape, layout = CUT[name]
    fused.compare(ops, replace(BASE, shape=shape, layout=layout, dtype=dtype), "hardswish", True)


@pytest.mark.parametrize("name", ["maps in chunks", "rows in chunks", "many rows", "7x7"])
def test_large_mean_is_as_accurate_as_batch_norm(ops: Any, name: str) -> None:
    shape, layout = CUT[name]
    torch.manual_seed(0)
    x = arrange(torch.randn(shape) + 1e3, layout)
    exact = F.batch_norm(x.double(), None, None, training=True)
    ours = (forward(ops, x)[0] - exact).abs().max()
    theirs = (F.batch_norm(x, None, None, training=True) - exact).abs().max()
    assert ours <= 1.1 * theirs + 2.4e-7


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_outlier_at_the_start_does_not_spoil_the_statistics(ops: Any, layout: str) -> None:
    """Sums are taken around the first values: there they are far from all others."""
    torch.manual_seed(0)
    x = torch.randn(2, 17, 40, 41)
    x[:, :, 0, 0] = 1e4
    _, m, E, V = forward(ops, arrange(x, layout))
    assert_close(m, x.double().mean((2, 3)), torch.float32, scale=1e4)
    assert_close(E, x.double().mean((0, 2, 3)), torch.float32, scale=1e4)
    assert_close(V, x.double().var((0, 2, 3), correction=0), torch.float32)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_variance_of_two_values_over_many_positions(ops: Any, layout: str) -> None:
    """Equal terms round the same way: a long float32 sum drifts, F.batch_norm's by 2e-3 here."""
    torch.manual_seed(0)
    x = arrange((torch.rand(1, 2, 500, 500) < 0.3).float(), layout)
    V = forward(ops, x)[3]
    exact = x.double().var((0, 2, 3), correction=0)
    assert torch.allclose(V.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [0.0, 1e3, -7.7])
def test_constant_channels_give_zero(ops: Any, value: float, layout: str) -> None:
    x = arrange(torch.full((3, 19, 9, 9), value), layout)
    y, _, _, V = forward(ops, x)
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(V, torch.zeros_like(V))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", sorted(ACTIVATION_OF))
def test_nan_spoils_one_map_in_evaluation_one_channel_in_training(
    ops: Any, activation: int, layout: str
) -> None:
    torch.manual_seed(0)
    x = arrange(torch.randn(3, 21, 5, 7), layout)
    x[1, 19, 2, 3] = torch.nan
    for training in (True, False):
        spoilt = torch.zeros(3, 21, dtype=torch.bool)
        spoilt[slice(None) if training else 1, 19] = True
        y, dx = (step(ops, x, training, activation)[i] for i in (0, 6))
        assert torch.equal(y.isnan().all(-1).all(-1), spoilt)
        assert torch.equal(y.isnan().any(-1).any(-1), spoilt)
        assert not dx[~spoilt].isnan().any()


@pytest.mark.parametrize("backend", sorted(ON))
def test_evaluation_copies_the_running_statistics(backend: str) -> None:
    """They may change before the backward pass."""
    x, mean, var = torch.randn(4, 3, 5, requires_grad=True), torch.zeros(3), torch.ones(3)
    with rbnorm.use_backend(backend):
        y = representative_batch_norm(x, mean, var, eps=0.0)
    var.add_(3)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("activation", sorted(ACTIVATION_OF))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_equals_forward(ops: Any, dtype: torch.dtype, activation: int) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(2, 3, 5, 6, 7).to(dtype).unbind()
    vectors, var = torch.randn(6, 5).unbind(), torch.rand(5) + 0.5
    tail = (1e-5, 0, activation, 0.1)
    y = ops.inference(x, residual, *vectors, var, *tail)
    expected = ops.forward(x, residual, *vectors, var, False, 0.1, *tail)[0]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("want_dx", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_wanted_gradients_do_not_depend_on_each_other(
    ops: Any, training: bool, want_dx: bool, activation: int
) -> None:
    torch.manual_seed(0)
    x, dy, residual = torch.randn(3, 4, 2, 5, 5).unbind()
    _, m, E, V = forward(ops, x, training)
    head = (dy, x, residual, m, E, V, *torch.randn(5, 2).unbind(), training)
    tail = (1e-5, 0, activation, 0.0)
    whole = ops.backward(*head, *tail, True, activation > 0)
    for want_dresidual in {False, activation > 0}:
        part = ops.backward(*head, *tail, want_dx, want_dresidual)
        wanted = (want_dx, want_dresidual, *[True] * 5)
        for keep, a, b in zip(wanted, part, whole, strict=True):
            assert torch.equal(a, b) if keep and b is not None else a is None


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("name", CUT)
def test_same_input_same_bits(ops: Any, name: str, threads: int) -> None:
    shape, layout = CUT[name]
    torch.manual_seed(0)
    x = arrange(torch.randn(shape), layout)
    for a, b in zip(step(ops, x, activation=1), step(ops, x, activation=1), strict=True):
        assert torch.equal(a, b)


# What the process below runs: every kind of sweep, by the instruction set it is told to use.
LIMITED = """
import cases, json, fused, test_fused, torch
from dataclasses import replace
from direct import KERNELS, ON
for dtype in cases.DTYPES:
    for layout in ("contiguous", "channels_last"):
        for activation in fused.ACTIVATIONS:
            for shape in ((2, 19, 3, 3), (3, 5, 11, 13), (3, 70, 1, 1)):
                case = replace(test_fused.BASE, shape=shape, dtype=dtype, layout=layout)
                for training in (True, False):
                    case = replace(case, training=training)
                    fused.compare(ON["c++"], case, activation, True)
for name in ("several chunks of every map", "rows in chunks"):
    shape, layout = test_fused.CUT[name]
    case = replace(test_fused.BASE, shape=shape, layout=layout)
    fused.compare(ON["c++"], case, "none", False)
print(json.dumps(KERNELS.INSTRUCTION_SET))
"""
WIDEST = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "plain")


@pytest.mark.skipif(FOUND.name != "c++", reason=FOUND.why)
def test_the_widest_instruction_set_runs() -> None:
    limit = os.environ.get("RBNORM_CPU")
    assert FOUND.why.startswith(f"instruction set {limit or WIDEST}, ")


@pytest.mark.skipif(FOUND.name != "c++", reason=FOUND.why)
@pytest.mark.parametrize("limit", ["plain", "avx2"])
def test_narrower_instruction_sets_equal_the_definition(limit: str) -> None:
    """On a CPU without AVX2 both are plain: what ran is read from the module itself."""
    done = python("-c", LIMITED, RBNORM_CPU=limit, PYTHONPATH=os.pathsep.join(sys.path))
    assert json.loads(done.stdout) == ("plain" if WIDEST == "plain" else limit)
