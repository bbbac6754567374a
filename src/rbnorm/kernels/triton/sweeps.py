"""The four sweeps over data. Each program takes one chunk of some rows; see :mod:`.tiles`.

Statistics leave a sweep as means over a chunk, (chunks, N, C); the table kernels merge the chunks.
Offsets are int64, the grid has one axis, nothing is accumulated with atomics. The sweeps for
statistics run backwards through memory, those that write forwards: each begins with what the one
before it has left in the second-level cache.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from rbnorm.kernels.triton.elementwise import NONE, activate, activation_grad, restrict
from rbnorm.kernels.triton.tiles import (
    addresses,
    corrected,
    inverse_deviation,
    locate,
    rows_per_tile,
    vector,
)


class Config(NamedTuple):
    """How a sweep may be compiled.

    Attributes:
        tile: Values of a tile.
        warps: Of a program.
        broad: In channels_last, how often the plan's WIDTH lies side by side in a tile.
    """

    tile: int
    warps: int
    broad: int = 1


# The first one is used where nothing may be timed.
CONFIGS = (
    Config(2048, 4),
    Config(4096, 4),
    Config(4096, 8),
    Config(2048, 4, 4),
    Config(4096, 8, 4),
    Config(8192, 8, 4),
)
_jit = triton.jit(do_not_specialize=["N", "chunks"])


@_jit
def moments(
    x, mean, var,
    N, C, L, chunk, chunks,
    WIDTH: tl.constexpr, ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Mean and, unless ``var`` is None, biased variance of each row's chunk.

    Both are taken of the differences to the mean of the row's first tile, in which a large common
    mean cancels, as it would around any value that is not far from the others.
    """
    ROWS: tl.constexpr = rows_per_tile(WIDTH, TILE, CHANNELS_LAST)
    BLOCK: tl.constexpr = TILE // ROWS
    acc = mean.dtype.element_ty
    row, _, inside, base, stride, begin, end, part = locate(
        N, C, L, chunk, chunks, ALIGN, CHANNELS_LAST, ROWS, BACKWARDS=True
    )
    offset, mask = addresses(base, stride, inside, begin, end, 0, BLOCK)
    value = tl.load(x + offset, mask, other=0.0).to(acc)
    pivot = tl.sum(value, 0) / tl.minimum(end - begin, BLOCK).to(acc)
    lane = tl.where(mask, value - pivot[None, :], 0.0)
    square = lane * lane
    for tile in range(1, tl.cdiv(end - begin, BLOCK)):
        offset, mask = addresses(base, stride, inside, begin, end, tile, BLOCK)
        value = tl.load(x + offset, mask, other=0.0).to(acc)
        value = tl.where(mask, value - pivot[None, :], 0.0)
        lane += value
        if var is not None:
            square += value * value
    count = (end - begin).to(acc)
    rest = tl.sum(lane, 0) / count
    out = part * N * C + row
    tl.store(mean + out, pivot + rest, inside)
    if var is not None:
        tl.store(var + out, corrected(tl.sum(square, 0) / count, rest), inside)


@_jit
def affine(
    x, m, scale, shift, residual, y,
    N, C, L, chunk, chunks,
    slope: tl.float64,
    ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, ALIGN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``y = act(scale (x - m) + shift + residual)``, rounded once."""
    ROWS: tl.constexpr = rows_per_tile(WIDTH, TILE, CHANNELS_LAST)
    BLOCK: tl.constexpr = TILE // ROWS
    acc = scale.dtype.element_ty
    row, _, inside, base, stride, begin, end, _ = locate(
        N, C, L, chunk, chunks, ALIGN, CHANNELS_LAST, ROWS
    )
    a = tl.load(scale + row, inside, other=0.0)[None, :]
    b = tl.load(shift + row, inside, other=0.0)[None, :]
    center = tl.load(m + row, inside, other=0.0)[None, :]
    for tile in range(tl.cdiv(end - begin, BLOCK)):
        offset, mask = addresses(base, stride, inside, begin, end, tile, BLOCK)
        z = a * (tl.load(x + offset, mask, other=0.0).to(acc) - center) + b
        if residual is not None:
            z += tl.load(residual + offset, mask, other=0.0).to(acc)
        z = activate(z, slope, ACTIVATION)
        tl.store(y + offset, z.to(y.dtype.element_ty), mask)


@_jit
def grad_moments(
    dy, x, m, scale, shift, residual, mean_dz, mean_dzx, E, V, weight, bias, center_weight,
    scale_weight, scale_bias,
    N, C, L, chunk, chunks,
    eps: tl.float64, slope: tl.float64,
    RESTRICT: tl.constexpr, ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, ALIGN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Means of ``dz`` and ``dz (x - m)`` over each row's chunk.

    ``dz = dy act'(scale (x - m) + shift + residual)``. With an activation, and where E is given,
    each row's ``scale`` and ``shift`` are computed here, and written for the sweep that follows.
    They take d = (1 + w_m) m - E directly where the forward pass sums deviations: as accurate as
    BatchNorm's x - E, and it saves a launch before this one.
    """
    ROWS: tl.constexpr = rows_per_tile(WIDTH, TILE, CHANNELS_LAST)
    BLOCK: tl.constexpr = TILE // ROWS
    acc = m.dtype.element_ty
    row, c, inside, base, stride, begin, end, part = locate(
        N, C, L, chunk, chunks, ALIGN, CHANNELS_LAST, ROWS, BACKWARDS=True
    )
    center = tl.load(m + row, inside, other=0.0)
    if ACTIVATION != NONE and E is None:
        a = tl.load(scale + row, inside, other=0.0)
        b = tl.load(shift + row, inside, other=0.0)
    elif ACTIVATION != NONE:
        w_m = vector(center_weight, c, inside, 0.0, acc, ROWS)
        r = inverse_deviation(tl.load(V + c, inside, other=1.0), eps)
        t = ((center - tl.load(E + c, inside, other=0.0)) + w_m * center) * r
        gain = vector(weight, c, inside, 1.0, acc, ROWS)
        if scale_weight is not None:
            w_v = tl.load(scale_weight + c, inside, other=0.0)
            w_b = tl.load(scale_bias + c, inside, other=0.0)
            gain *= restrict(w_v * t + w_b, RESTRICT)
        a = gain * r
        b = vector(bias, c, inside, 0.0, acc, ROWS) + gain * t
        tl.store(scale + row, a, inside & (part == 0))
        tl.store(shift + row, b, inside & (part == 0))
    sum_dz = tl.zeros([BLOCK, ROWS], acc)
    sum_dzx = tl.zeros([BLOCK, ROWS], acc)
    for tile in range(tl.cdiv(end - begin, BLOCK)):
        offset, mask = addresses(base, stride, inside, begin, end, tile, BLOCK)
        dz = tl.load(dy + offset, mask, other=0.0).to(acc)
        centered = tl.load(x + offset, mask, other=0.0).to(acc) - center[None, :]
        if ACTIVATION != NONE:
            z = a[None, :] * centered + b[None, :]
            if residual is not None:
                z += tl.load(residual + offset, mask, other=0.0).to(acc)
            dz *= activation_grad(z, slope, ACTIVATION)
        sum_dz += dz
        sum_dzx += dz * centered
    count = (end - begin).to(acc)
    out = part * N * C + row
    tl.store(mean_dz + out, tl.sum(sum_dz, 0) / count, inside)
    tl.store(mean_dzx + out, tl.sum(sum_dzx, 0) / count, inside)


@_jit
def grad_affine(
    dy, x, m, scale, shift, x_scale, u, residual, dx, dresidual,
    N, C, L, chunk, chunks,
    slope: tl.float64,
    ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, ALIGN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``dx = scale dz + x_scale (x - m) + u`` and ``dresidual = dz``, each where it is given.

    ``dz = dy act'(scale (x - m) + shift + residual)``; ``x_scale`` is (C,), None means 0.
    """
    ROWS: tl.constexpr = rows_per_tile(WIDTH, TILE, CHANNELS_LAST)
    BLOCK: tl.constexpr = TILE // ROWS
    acc = scale.dtype.element_ty
    row, c, inside, base, stride, begin, end, _ = locate(
        N, C, L, chunk, chunks, ALIGN, CHANNELS_LAST, ROWS
    )
    a = tl.load(scale + row, inside, other=0.0)[None, :]
    center = tl.load(m + row, inside, other=0.0)[None, :]
    if ACTIVATION != NONE:
        b = tl.load(shift + row, inside, other=0.0)[None, :]
    if dx is not None:
        offset_u = tl.load(u + row, inside, other=0.0)[None, :]
    if x_scale is not None:
        factor = tl.load(x_scale + c, inside, other=0.0)[None, :]
    for tile in range(tl.cdiv(end - begin, BLOCK)):
        offset, mask = addresses(base, stride, inside, begin, end, tile, BLOCK)
        dz = tl.load(dy + offset, mask, other=0.0).to(acc)
        if ACTIVATION != NONE or x_scale is not None:
            centered = tl.load(x + offset, mask, other=0.0).to(acc) - center
        if ACTIVATION != NONE:
            z = a * centered + b
            if residual is not None:
                z += tl.load(residual + offset, mask, other=0.0).to(acc)
            dz *= activation_grad(z, slope, ACTIVATION)
        if dresidual is not None:
            tl.store(dresidual + offset, dz.to(dresidual.dtype.element_ty), mask)
        if dx is not None:
            dx_ = a * dz + offset_u
            if x_scale is not None:
                dx_ += factor * centered
            tl.store(dx + offset, dx_.to(dx.dtype.element_ty), mask)
