"""What is left of an RBN layer in evaluation when its static part has been taken out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rbnorm.definition import RESTRICTIONS, Restriction, per_channel, resolve
from rbnorm.kernels.phases import table_dtype
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm.layers.classes import RepresentativeBatchNormAct2d

# Below it gamma counts as 0: the channel's output is beta to far less than a rounding.
_NO_GAIN = 1e-20


class Parts(NamedTuple):
    """An RBN layer in evaluation as two steps, all vectors (C,) in float64.

    Attributes:
        gain: Factor of x in the static step ``u = gain x + offset``.
        offset: Its shift.
        center: ``w_m`` and ``c`` of the instance step, or None without a centring calibration.
        gate: ``a`` and ``b``, or None without a scaling calibration.
        bias: beta, where it is not in ``offset`` or ``c`` already.
    """

    gain: Tensor
    offset: Tensor
    center: tuple[Tensor, Tensor] | None
    gate: tuple[Tensor, Tensor] | None
    bias: Tensor | None


def _wide(vector: Tensor | None, absent: float, like: Tensor) -> Tensor:
    return torch.full_like(like, absent) if vector is None else vector.double()


@torch.no_grad()
def split(layer: _RepresentativeBatchNorm) -> Parts:
    r"""Take the static part out of a layer that has running statistics.

    With :math:`u = \gamma r (x - E)` and its instance mean :math:`k`, that of :math:`x` is
    :math:`m = k/(\gamma r) + E`, so

    .. math::

        y = g (u + w_m k + c) + \beta, \quad g = R(a k + b), \quad c = w_m \gamma r E, \quad
        a = w_v (1 + w_m) / \gamma, \quad b = w_b + w_v w_m r E .

    Without a trained :math:`w_v` the gate is a constant and joins :math:`\gamma`; without a trained
    :math:`w_m` nothing is left of the centring.
    """
    assert layer.running_mean is not None
    assert layer.running_var is not None
    E, V = layer.running_mean.double(), layer.running_var.double()
    gamma, beta = _wide(layer.weight, 1, E), _wide(layer.bias, 0, E)
    w_m, w_v = _wide(layer.center_weight, 0, E), _wide(layer.scale_weight, 0, E)
    r = (V + layer.eps).rsqrt()
    gate = None
    if w_v.any():
        a = torch.where(gamma.abs() < _NO_GAIN, 0, w_v * (1 + w_m) / gamma)
        gate = a, _wide(layer.scale_bias, 0, E) + w_v * w_m * r * E
    elif layer.scale_bias is not None:
        gamma = gamma * restriction(layer.calibration.restrict)(layer.scale_bias.double())
    gain = gamma * r
    offset = -gain * E
    if not w_m.any():
        return Parts(gain, offset if gate else offset + beta, None, gate, beta if gate else None)
    c = w_m * gain * E
    return Parts(gain, offset, (w_m, c if gate else c + beta), gate, beta if gate else None)


def restriction(choice: str | Restriction) -> Restriction:
    """Look R up by its name."""
    return resolve("restrict", choice, RESTRICTIONS)


def _beside(x: Tensor, vector: Tensor) -> Tensor:
    """A (C,) vector in the shape and dtype for arithmetic with ``x``."""
    return per_channel(vector, x)[0].to(table_dtype(x.dtype))


class FoldedRepresentativeBatchNorm(nn.Module):
    r"""The instance-dependent part of an RBN layer in evaluation, as :func:`fold` makes it.

    .. math::

        y = g\,(u + w_m k + c) + \beta, \quad g = R(a k + b), \quad k = \mathrm{mean}(u)

    where :math:`u`, the input of shape (N, C, ...), is BatchNorm's output before :math:`\beta`,
    which the layer before computes now, and every other letter is a constant per channel in a
    buffer: ``center_weight`` and ``center_bias`` for :math:`w_m, c`, ``scale_weight`` and
    ``scale_bias`` for :math:`a, b`, ``bias``. What the layer does not need is None; without
    trained calibration it is the identity. Drop, residual and activation of a
    :class:`rbnorm.RepresentativeBatchNormAct2d` follow. Statistics in float32 for half inputs; the
    output has the input's dtype.

    Args:
        layer: The layer in evaluation.
        parts: Its parts.
        input: An input of the layer, for rank and dtype.
    """

    center_weight: Tensor | None
    center_bias: Tensor | None
    scale_weight: Tensor | None
    scale_bias: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: _RepresentativeBatchNorm, parts: Parts, input: Tensor) -> None:
        super().__init__()
        center, gate = parts.center or (None, None), parts.gate or (None, None)
        vectors = {
            "center_weight": center[0],
            "center_bias": center[1],
            "scale_weight": gate[0],
            "scale_bias": gate[1],
            "bias": parts.bias,
        }
        for name, vector in vectors.items():
            self.register_buffer(name, None if vector is None else _beside(input, vector))
        self.restrict = layer.calibration.restrict
        act = isinstance(layer, RepresentativeBatchNormAct2d)
        self.drop: nn.Module = layer.drop if act else nn.Identity()  # type: ignore[assignment]
        self.act: nn.Module = layer.act if act else nn.Identity()  # type: ignore[assignment]
        self.eval()

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Calibrate, drop, add the residual, activate."""
        u = input.to(table_dtype(input.dtype))
        output = self.drop(self._calibrate(u).to(input.dtype))
        output = output if residual is None else output + residual
        return self.act(output)  # type: ignore[no-any-return]

    def _calibrate(self, u: Tensor) -> Tensor:
        if self.center_weight is None and self.scale_weight is None:
            return u
        k = u.mean(tuple(range(2, u.ndim)), keepdim=True) if u.ndim > 2 else u
        if self.scale_weight is None:
            return u + _affine(self.center_weight, k, self.center_bias)
        g = restriction(self.restrict)(_affine(self.scale_weight, k, self.scale_bias))
        if self.center_weight is None:
            return _affine(g, u, self.bias)
        # Added up on (N, C) numbers, so that only two sweeps are over u.
        return g * u + _affine(g, _affine(self.center_weight, k, self.center_bias), self.bias)


def _affine(scale: Tensor | None, x: Tensor, shift: Tensor | None) -> Tensor:
    assert scale is not None
    assert shift is not None
    return scale * x + shift
