"""What is left of an RBN layer in evaluation when its static part has been taken out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rbnorm.definition import RESTRICTIONS, per_channel, resolve
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
        instance: The vectors of the instance step, by the names of the buffers of
            :class:`FoldedRepresentativeBatchNorm`; those it needs, so none where it does nothing.
    """

    gain: Tensor
    offset: Tensor
    instance: dict[str, Tensor]


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
    E: Tensor = layer.running_mean.double()

    def wide(vector: Tensor | None, absent: float) -> Tensor:
        return torch.full_like(E, absent) if vector is None else vector.double()

    r = (wide(layer.running_var, 1) + layer.eps).rsqrt()
    gamma, beta = wide(layer.weight, 1), wide(layer.bias, 0)
    w_m, w_v, w_b = (
        wide(vector, 0) for vector in (layer.center_weight, layer.scale_weight, layer.scale_bias)
    )
    instance = {}
    if w_v.any():
        instance["scale_weight"] = torch.where(gamma.abs() < _NO_GAIN, 0, w_v * (1 + w_m) / gamma)
        instance["scale_bias"] = w_b + w_v * w_m * r * E
        instance["bias"] = beta
        beta = torch.zeros_like(E)
    elif layer.scale_bias is not None:
        gamma = gamma * layer.calibration.restriction(w_b)
    gain = gamma * r
    if w_m.any():
        instance |= {"center_weight": w_m, "center_bias": w_m * gain * E + beta}
        return Parts(gain, -gain * E, instance)
    return Parts(gain, beta - gain * E, instance)


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
    center_bias: Tensor
    scale_weight: Tensor | None
    scale_bias: Tensor
    bias: Tensor

    def __init__(self, layer: _RepresentativeBatchNorm, parts: Parts, input: Tensor) -> None:
        super().__init__()
        for name in ("center_weight", "center_bias", "scale_weight", "scale_bias", "bias"):
            vector = parts.instance.get(name)
            if vector is not None:
                vector = per_channel(vector, input).to(table_dtype(input.dtype))[0]
            self.register_buffer(name, vector)
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
        shift = None if self.center_weight is None else self.center_weight * k + self.center_bias
        if self.scale_weight is None:
            return u if shift is None else u + shift
        restrict = resolve("restrict", self.restrict, RESTRICTIONS)
        g = restrict(self.scale_weight * k + self.scale_bias)
        # Added up on (N, C) numbers, so that only two sweeps are over u.
        return g * u + (self.bias if shift is None else g * shift + self.bias)
