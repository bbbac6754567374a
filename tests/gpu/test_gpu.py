"""The ops on a CUDA or ROCm device: `make test-gpu`. Every other run deselects them."""

import os
from dataclasses import replace

import fused
import pytest
import torch
from cases import DTYPES, LAYOUTS, Case, cases
from direct import of_sweeps
from fused import ACTIVATIONS, RESTRICTIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor
from torch.nn import functional as F

import rbnorm
from rbnorm.kernels import active, phases
from rbnorm.kernels import triton as ops

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
EXAMPLES = int(os.environ.get("RBNORM_FUZZ_EXAMPLES", "100"))  # each compiles kernels of its own
BASE = Case((5, 3, 4, 5), torch.float32, "contiguous", True, {"eps": 1e-3}, 0)


def test_the_kernels_are_what_runs():
    assert active(DEVICE).whole.forward is ops.forward
    assert active(DEVICE).phases.moments is ops.moments


@given(cases(), st.sampled_from(sorted(ACTIVATIONS)), st.booleans())
@settings(max_examples=EXAMPLES, deadline=None)
def test_fused_ops_equal_definition(case, activation, with_residual):
    fused.compare(ops, case, activation, with_residual, device=DEVICE)


@pytest.mark.parametrize("restrict", RESTRICTIONS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_restriction_and_activation(restrict, training, activation):
    options = {**BASE.options, "restrict": restrict}
    case = replace(BASE, options=options, training=training)
    fused.compare(ops, case, activation, True, device=DEVICE)


@pytest.fixture
def deterministic():
    """What nobody writes is NaN, and nothing is tuned."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("training", "activation", "residual"),
    [(True, "none", False), (True, "relu", True), (False, "none", False), (False, "silu", True)],
)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize(
    "shape",
    [
        (8, 64, 14, 14),
        (4, 3, 33, 65),  # nothing is aligned
        (3, 256, 7, 7),
        (2, 5, 200, 301),  # positions in chunks
        (64, 32),  # a single position
        (1, 8, 4, 4),
        (300, 16, 3, 3),  # many instances
    ],
)
def test_every_kind_of_map(deterministic, shape, layout, dtype, training, activation, residual):
    case = Case(shape, dtype, layout, training, {"eps": 1e-3}, 0)
    fused.compare(ops, case, activation, residual, layout, DEVICE)


@pytest.mark.parametrize("dy_layout", [layout for layout in LAYOUTS if layout != "expanded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, dy_layout):
    fused.compare(ops, replace(BASE, layout=layout), "silu", True, dy_layout, DEVICE)


def random(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, device=DEVICE).mul_(2).add_(1).to(dtype)
    return x.contiguous(memory_format=layout)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (32, 64, 56, 56),
        (32, 256, 14, 14),
        (32, 2048, 7, 7),
        (2, 3, 1024, 1024),  # few rows: split into chunks
        (1, 24, 301, 307),
        (70000, 3, 5, 5),
    ],
)
def test_sweeps_equal_definition_at_real_sizes(shape, dtype, channels_last):
    torch.manual_seed(0)
    x, dy = (random(shape, dtype, channels_last) for _ in range(2))
    wide = phases.table_dtype(dtype)
    m, a, b = torch.randn(3, *shape[:2], device=DEVICE, dtype=wide).unbind()
    p = torch.randn(shape[1], device=DEVICE, dtype=wide)
    for name, args in of_sweeps(x, dy, m, a, b, b, p).items():
        found = getattr(ops, name)(*args)
        expected = getattr(phases, name)(
            *(t.double() if isinstance(t, torch.Tensor) else t for t in args)
        )
        pairs = (
            zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
        )
        for ours, wanted in pairs:
            assert_close(ours, wanted, ours.dtype, scale=8.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_output_is_one_rounding_of_the_exact_one(dtype):
    x = random((8, 4, 33, 9), dtype)
    y = ops.forward(x, *[None] * 8, True, 0.1, 1e-5, 0, 0, 0.0)[0]
    exact = F.batch_norm(x.double(), None, None, training=True)
    spacing = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
    assert ((y.double() - exact).abs() <= 0.51 * spacing).all()


def step(x: Tensor, dy: Tensor, running: list[Tensor]) -> tuple[Tensor, ...]:
    """Forward and backward with everything a layer has."""
    vectors = torch.linspace(-1, 1, 5 * x.shape[1], device=DEVICE).view(5, -1).unbind()
    tail = (1e-5, 0, 1, 0.0)
    y, m, E, V = ops.forward(x, dy, *vectors, *running, True, 0.1, *tail)
    return y, *ops.backward(dy, x, dy, m, E, V, *vectors, True, *tail, True, True)


def fresh(C: int) -> list[Tensor]:
    return [torch.zeros(C, device=DEVICE), torch.ones(C, device=DEVICE)]


def same(ours: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


@pytest.mark.parametrize("shape", [(8, 16, 28, 28), (2, 3, 512, 512)])
def test_cuda_graph_replays_with_new_data(shape):
    x, dy, running = random(shape, torch.float32), random(shape, torch.float32), fresh(shape[1])
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step(x, dy, running)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x, dy, running)
    x.copy_(random(shape, torch.float32))
    expected_running = [t.clone() for t in running]
    graph.replay()
    expected = step(x, dy, expected_running)
    assert same(captured, expected)
    assert same(running, expected_running)


def test_tuning_leaves_the_running_statistics_alone():
    """The first call of a size times several configurations; the buffers move once."""
    x, running, again = random((4, 5, 33, 65), torch.float32), fresh(5), fresh(5)
    step(x, x, running)
    step(x, x, again)
    assert same(running, again)


def test_the_host_never_waits():
    x, running = random((8, 16, 28, 28), torch.float32), fresh(16)
    vectors = torch.randn(5, 16, device=DEVICE).unbind()
    tail = (1e-5, 0, 1, 0.0)
    step(x, x, running)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, m, E, V = ops.forward(x, x, *vectors, *running, True, 0.1, *tail)
        ops.backward(x, x, x, m, E, V, *vectors, True, *tail, True, True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_same_input_same_bits():
    x = random((3, 7, 301, 307), torch.float32)
    assert same(step(x, x, fresh(7)), step(x, x, fresh(7)))


def test_another_stream_gives_the_same():
    x = random((8, 16, 28, 28), torch.float32)
    expected, side = step(x, x, fresh(16)), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = step(x, x, fresh(16))
    torch.cuda.current_stream().wait_stream(side)
    assert same(found, expected)


def test_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    x = random((8, 16, 28, 28), torch.float32)
    assert torch.equal(ops.mean(x.to("cuda:1")).cpu(), ops.mean(x).cpu())


@pytest.mark.parametrize("channels_last", [False, True])
def test_beyond_2_to_the_31_elements(channels_last):
    """Each channel of each instance holds its own number plus -1 and 1 by turns."""
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free memory")
    shape = (3, 4, 2**14, 2**14 - 2**12)  # 2.4e9 values, 4.8 GB
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE, memory_format=layout)
    level = torch.arange(12.0, device=DEVICE).view(3, 4)
    x.copy_(level.to(x.dtype)[..., None, None])
    x[..., ::2].sub_(1)
    x[..., 1::2].add_(1)
    assert x.numel() > 2**31
    m, v = ops.moments(x)
    assert torch.allclose(m, level, rtol=0, atol=1e-5)
    assert torch.allclose(v, torch.ones_like(v), rtol=1e-5, atol=0)
    y = ops.affine(x, m, torch.ones_like(m), level, None, 0, 0.0)
    assert torch.equal(y, x)
    del y
    s1, s2 = ops.grad_moments(x, x, level, None, None, None, 0, 0.0)
    assert torch.allclose(s1, level, rtol=0, atol=1e-4)
    assert torch.allclose(s2, torch.ones_like(s2), rtol=1e-4, atol=0)
    zero, one = torch.zeros_like(level), torch.ones(4, device=DEVICE)
    dx, _ = ops.grad_affine(x, x, level, zero, None, one, level, None, 0, 0.0, True, False)
    assert torch.equal(dx, x)


@pytest.mark.parametrize("channels_last", [False, True])
def test_layer_equals_definition(channels_last):
    torch.manual_seed(0)
    layer = rbnorm.RepresentativeBatchNorm2d(16, scale_weight_init=0.3).to(DEVICE)
    x = random((8, 16, 14, 14), torch.float32, channels_last).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    exact = x.detach().double().requires_grad_()
    names = ("weight", "bias", "center_weight", "scale_weight", "scale_bias")
    vectors = [getattr(layer, name).detach().double() for name in names]
    expected = rbnorm.definition.literal_rbn(exact, *vectors)[0]
    expected.square().sum().backward()
    assert_close(y, expected, torch.float32)
    assert_close(x.grad, exact.grad, torch.float32, scale=8.0)
