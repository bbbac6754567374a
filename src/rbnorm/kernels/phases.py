"""The sweeps in plain PyTorch: any device, floating dtype and layout, traceable and differentiable.

``x`` and ``dy`` are (N, C, ...); every table is (N, C) or, where it says so, (C,), in the table
dtype: float32, or float64 for a float64 input. In-place arithmetic only ever touches temporaries.
"""

from __future__ import annotations

import torch
from torch import Tensor


def table_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and tables for an input of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _spread(table: Tensor, x: Tensor) -> Tensor:
    """View an (N, C) or (C,) table so that it broadcasts against ``x``."""
    return table.reshape(table.shape + (1,) * (x.ndim - 2))


def _axes(x: Tensor) -> tuple[int, ...]:
    """The axes of the positions; an (N, C) input has none, and an empty ``dim`` would mean all."""
    return tuple(range(2, x.ndim))


def positions(x: Tensor) -> int:
    """The number L of positions per channel of one instance."""
    return x.shape[2:].numel()


def standard(y: Tensor) -> Tensor:
    """``y`` in BatchNorm's output layout: contiguous, or channels_last where it is that already."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    # torch.func.vmap does not tell the layout of one of its instances.
    vmapped = not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(y)
    if y.ndim in formats and not vmapped and y.is_contiguous(memory_format=formats[y.ndim]):
        return y
    return y.contiguous()


def mean(x: Tensor) -> Tensor:
    """The mean of each instance and channel."""
    dtype = table_dtype(x.dtype)
    if x.ndim == 2:
        return x.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return x.mean(_axes(x), dtype=dtype).contiguous()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and biased variance of each instance and channel, in two passes.

    The second one also corrects both for the rounding of the first one's sums, which is
    what limits the accuracy of float32 when the mean is large against the spread.
    """
    rough = mean(x)
    deviation = x - _spread(rough, x)
    rest = mean(deviation)
    return rough + rest, (mean(deviation.square_()) - rest * rest).clamp_min(0)


def affine_table(x: Tensor, center: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale * (x - center) + shift`` in the table dtype."""
    centered = x if center is None else x - _spread(center, x)
    return torch.addcmul(_spread(shift, x), _spread(scale, x), centered)


def affine(x: Tensor, center: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale * (x - center) + shift`` in the dtype of ``x``, laid out as BatchNorm does."""
    return standard(affine_table(x, center, scale, shift).to(x.dtype))


def grad_moments(dy: Tensor, x: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """The means of ``dy`` and ``dy * (x - center)`` over each instance and channel."""
    return mean(dy), mean((x - _spread(center, x)).mul_(dy))


def grad_affine(
    dy: Tensor, x: Tensor, center: Tensor, dy_scale: Tensor, x_scale: Tensor, shift: Tensor
) -> Tensor:
    """``dy_scale * dy + x_scale * (x - center) + shift``, as ``affine``; ``x_scale`` is (C,)."""
    dx = (x - _spread(center, x)).mul_(_spread(x_scale, x))
    return standard(dx.addcmul_(_spread(dy_scale, x), dy).add_(_spread(shift, x)).to(x.dtype))
