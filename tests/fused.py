"""The fused ops, of any backend on any device, against the literal definition and its autograd."""

from functools import partial
from typing import Any

import torch
from cases import VECTORS, Case, arrange
from tolerances import assert_close

from rbnorm import definition, elementwise

RESTRICTIONS = tuple(elementwise.RESTRICTIONS)
SLOPE = 0.2
ACTIVATIONS = {name: partial(f, slope=SLOPE) for name, f in elementwise.ACTIVATIONS.items()}
ACTIVATIONS["hardswish"] = lambda z: z * (z / 6 + 0.5).clamp(0, 1)  # F.hardswish's 1/6 is a float32


def compare(
    ops: Any,
    case: Case,
    activation: str,
    with_residual: bool,
    dy_layout: str = "contiguous",
    device: str = "cpu",
) -> None:
    """Run ``ops.forward`` and ``ops.backward`` on a case and compare everything they produce."""
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    layer = case.layer(wide).to(device)
    eps, restrict = layer.eps, layer.calibration.restrict
    training = case.training or layer.running_mean is None
    momentum = 0.25 if layer.momentum is None else layer.momentum
    x, dy = (t.to(device) for t in case.tensors(0))
    x, dy = arrange(x, case.layout), arrange(dy, dy_layout)
    residual = case.tensors(1)[0].to(device) if with_residual else None
    parameters = [getattr(layer, name) for name in VECTORS]
    vectors = [None if v is None else v.detach() for v in parameters]
    running = [layer.running_mean, layer.running_var]

    leaves = [None if v is None else v.double().clone() for v in (x, residual, *vectors)]
    exact_x, exact_residual, *exact = [None if v is None else v.requires_grad_() for v in leaves]
    before = [None if v is None else v.double().clone() for v in running]
    z, mean, var = definition.literal_rbn(
        exact_x, *exact, statistics=None if training else before, eps=eps, restrict=restrict
    )
    expected = ACTIVATIONS[activation](z if residual is None else z + exact_residual)
    expected.backward(dy.double())

    codes = elementwise.RESTRICTIONS[restrict].code, elementwise.ACTIVATIONS[activation].code
    tail = (eps, *codes, SLOPE)
    original = x.clone()
    y, m, E, V = ops.forward(x, residual, *vectors, *running, training, momentum, *tail)
    assert torch.equal(x, original)
    assert y.dtype == case.dtype
    assert_close(y, expected, case.dtype)
    assert_close(m, x.double().reshape(*x.shape[:2], -1).mean(-1), wide)
    assert_close(E, mean, wide)
    assert_close(V, var, wide)
    if running[0] is not None:
        f, M = momentum if training else 0.0, x.numel() / x.shape[1]
        assert_close(running[0], torch.lerp(before[0], mean, f), wide)
        assert_close(running[1], torch.lerp(before[1], var * M / max(M - 1, 1), f), wide)

    want_dresidual = activation != "none" and with_residual
    kept = residual if want_dresidual else None
    dx, dresidual, *found = ops.backward(
        dy, x, kept, m, E, V, *vectors, training, *tail, True, want_dresidual
    )
    # Cancelling terms of the gradient are as large as gamma r dy, whatever their sum.
    scale = min(eps**-0.5, 30.0)
    assert dx.dtype == case.dtype
    assert_close(dx, exact_x.grad, case.dtype, scale=scale)
    if want_dresidual:
        assert dresidual.dtype == case.dtype
        assert_close(dresidual, exact_residual.grad, case.dtype)
    else:
        assert dresidual is None
    for ours, vector in zip(found, exact, strict=True):
        if vector is None:
            assert ours is None
        else:
            assert_close(ours, vector.grad, wide, scale=scale)
