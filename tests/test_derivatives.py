"""First and second derivatives against finite differences, and what backward keeps alive."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import rbnorm
from rbnorm.definition import RESTRICTIONS
from rbnorm.functional import representative_batch_norm


def arguments(shape: tuple[int, ...], **options: Any) -> tuple[Any, list[Tensor]]:
    """A function of (x, five vectors) in float64, and values for them."""
    torch.manual_seed(0)
    C = shape[1]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True)]
    tensors += [torch.randn(C, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    mean, var = torch.randn(C, dtype=torch.float64), torch.rand(C, dtype=torch.float64) + 0.5

    def function(x: Tensor, weight: Tensor, bias: Tensor, *calibration: Tensor) -> Tensor:
        w_m, w_v, w_b = calibration
        return representative_batch_norm(
            x,
            mean.clone(),
            var.clone(),
            weight,
            bias,
            eps=1e-2,
            center_weight=w_m,
            scale_weight=w_v,
            scale_bias=w_b,
            **options,
        )

    return function, tensors


CASES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    *(((3, 2, 4), {"restrict": name}) for name in (*sorted(RESTRICTIONS), torch.cos)),
    *(((3, 2, 4), {"statistic": name}) for name in ("max", "min", "std")),
    *((shape, {}) for shape in ((4, 2), (1, 2, 3), (3, 2, 1), (2, 1, 2, 3), (2, 2, 2, 1, 2))),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "options"), CASES)
def test_gradients_are_those_of_finite_differences(shape, options, training: bool) -> None:
    function, tensors = arguments(shape, training=training, **options)
    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize(
    "wanted", [w for w in itertools.product([True, False], repeat=6) if sum(w) in {1, 5}]
)
def test_gradients_of_a_subset_of_inputs(wanted: tuple[bool, ...]) -> None:
    function, tensors = arguments((3, 2, 4), training=True)
    full = torch.autograd.grad(function(*tensors).square().sum(), tensors)
    for tensor, keep in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(keep)
    chosen = [tensor for tensor in tensors if tensor.requires_grad]
    part = torch.autograd.grad(function(*tensors).square().sum(), chosen)
    expected = [grad for grad, keep in zip(full, wanted, strict=True) if keep]
    for actual, wanted_grad in zip(part, expected, strict=True):
        assert torch.equal(actual, wanted_grad)


def test_gradient_penalty_trains() -> None:
    """A double backward through an eager layer, as in a gradient penalty, in float32."""
    torch.manual_seed(0)
    layer = rbnorm.RepresentativeBatchNorm1d(3)
    x = torch.randn(5, 3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
    grad.square().sum().backward()
    wide = rbnorm.RepresentativeBatchNorm1d(3, dtype=torch.float64)
    xw = x.detach().double().requires_grad_()
    (gw,) = torch.autograd.grad(wide(xw).sin().sum(), xw, create_graph=True)
    gw.square().sum().backward()
    for (name, p), (_, q) in zip(layer.named_parameters(), wide.named_parameters(), strict=True):
        assert torch.allclose(p.grad.double(), q.grad, rtol=1e-4, atol=1e-4), name


def shared_history(x: Tensor, w: Tensor) -> Tensor:
    """A weight computed from the input, and one tensor that is two parameters at once."""
    return representative_batch_norm(
        x, None, None, x.mean((0, 2)), None, True, scale_weight=w, scale_bias=w, center_weight=w
    )


def test_arguments_with_common_history_are_counted_once() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(shared_history, (x, w))
    assert gradgradcheck(shared_history, (x, w))
    loss = shared_history(x, w).sin().sum()
    plain = torch.autograd.grad(loss, (x, w), retain_graph=True)
    graph = torch.autograd.grad(loss, (x, w), create_graph=True)
    for actual, expected in zip(graph, plain, strict=True):
        assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_two_forwards_before_one_backward(training: bool) -> None:
    """No running buffer is saved, so a second forward does not spoil the first one's backward."""
    torch.manual_seed(0)
    layer = rbnorm.RepresentativeBatchNorm2d(3, dtype=torch.float64).train(training)
    x1, x2 = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64, requires_grad=True).unbind()
    expected = [torch.autograd.grad(layer(x).square().sum(), x)[0] for x in (x1, x2)]
    layer.reset_running_stats()
    y1 = layer(x1)
    if not training:
        layer.train()(x2)
        layer.eval().reset_running_stats()
    y2 = layer(x2)
    found = torch.autograd.grad(y1.square().sum() + y2.square().sum(), (x1, x2))
    for actual, wanted in zip(found, expected, strict=True):
        assert torch.equal(actual, wanted)


def test_backward_saves_the_input_and_small_tables_only() -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(8)
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    big = [tensor for tensor in saved if tensor.numel() > 4 * 8]
    assert len(big) == 1
    assert big[0].data_ptr() == x.data_ptr()


def test_gradient_in_another_layout_than_the_input() -> None:
    torch.manual_seed(0)
    layer = rbnorm.RepresentativeBatchNorm2d(3, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).requires_grad_()
    dy = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = torch.autograd.grad(layer(x), x, dy)[0]
    for other in (dy.to(memory_format=torch.channels_last), dy.mT.contiguous().mT):
        assert torch.allclose(
            torch.autograd.grad(layer(x), x, other)[0], expected, rtol=0, atol=1e-15
        )


def test_zero_stride_gradient() -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(3, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    dense = torch.autograd.grad(layer(x), x, torch.ones_like(x))[0]
    assert torch.equal(torch.autograd.grad(layer(x).sum(), x)[0], dense)


def test_input_of_an_in_place_shortcut_is_untouched() -> None:
    """The official layer adds to its input in place, which corrupts residual connections."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = rbnorm.RepresentativeBatchNorm2d(2, center_weight_init=0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + x

    x = torch.randn(3, 2, 4, 4)
    block = Block().eval()
    assert torch.equal(block(x) - block.norm(x), (block.norm(x) + x) - block.norm(x))
    assert torch.equal(block(x), block.norm(x) + x)


# torch's own forward-mode code calls its deprecated torch.jit.script.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("training", [True, False])
def test_forward_mode(training: bool) -> None:
    function, tensors = arguments((3, 2, 4), training=training)
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=False)


def test_func_transforms_equal_autograd() -> None:
    """``torch.func.grad``, ``jacrev`` and ``vmap`` over an ensemble, as with BatchNorm."""
    function, tensors = arguments((3, 2, 4), training=False)

    def loss(*args: Tensor) -> Tensor:
        return function(*args).square().sum()

    everything = tuple(range(6))
    found = torch.func.grad(loss, everything)(*tensors)
    expected = torch.autograd.grad(loss(*tensors), tensors)
    for actual, wanted in zip(found, expected, strict=True):
        assert torch.allclose(actual, wanted, rtol=0, atol=1e-12)
    jacobian = torch.func.jacrev(lambda w: loss(tensors[0], w, *tensors[2:]))(tensors[1])
    assert torch.allclose(jacobian, expected[1], rtol=0, atol=1e-12)
    for i in range(6):  # each argument batched alone, then all of them
        axes = [0 if j == i else None for j in range(6)]
        one = [torch.stack([t, 2 * t]) if j == i else t for j, t in enumerate(tensors)]
        doubled = [2 * t if j == i else t for j, t in enumerate(tensors)]
        batched = torch.func.vmap(function, tuple(axes))(*one)
        assert torch.allclose(batched[1], function(*doubled), rtol=0, atol=1e-12)
    members = [torch.stack([tensor, 2 * tensor]) for tensor in tensors]
    outputs = torch.func.vmap(function)(*members)
    for i in range(2):
        assert torch.allclose(outputs[i], function(*(m[i] for m in members)), rtol=0, atol=1e-12)


def test_functional_call_in_evaluation() -> None:
    """In training torch refuses to update captured buffers, for BatchNorm too."""
    layer = rbnorm.RepresentativeBatchNorm1d(3, dtype=torch.float64).eval()
    state = {name: value.detach().clone() for name, value in layer.state_dict().items()}
    x = torch.randn(5, 3, 4, dtype=torch.float64)

    def loss(weight: Tensor) -> Tensor:
        given = {**state, "weight": weight}
        return torch.func.functional_call(layer, given, (x,)).square().sum()

    found = torch.func.grad(loss)(state["weight"])
    layer(x).square().sum().backward()
    assert torch.allclose(found, layer.weight.grad, rtol=0, atol=1e-12)
