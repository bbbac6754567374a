"""The layer in evaluation in one launch: a program owns its rows whole, and nobody else's."""

# No `from __future__ import annotations`: Triton reads the annotations.

import triton
import triton.language as tl

from rbnorm.kernels.triton.elementwise import activate, restrict
from rbnorm.kernels.triton.tiles import (
    addresses,
    inverse_deviation,
    locate,
    rows_per_tile,
    vector,
)


@triton.jit(do_not_specialize=["N"])
def evaluate(
    x, residual, y, m, E, V, weight, bias, center_weight, scale_weight, scale_bias, running_mean,
    running_var,
    N, C, L,
    eps: tl.float64, slope: tl.float64,
    RESTRICT: tl.constexpr, ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, ALIGN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, TILE: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """``y = act(gain r (x - m) + bias + gain t + residual)``; where given also m, E and V.

    Where a tile holds every position (``HELD``), x is read once; elsewhere twice, the second time
    while it still is in a cache.
    """
    ROWS: tl.constexpr = rows_per_tile(WIDTH, TILE, CHANNELS_LAST)
    BLOCK: tl.constexpr = TILE // ROWS
    acc = running_var.dtype.element_ty
    row, c, inside, base, stride, begin, end, _ = locate(
        N, C, L, tl.cdiv(L, ALIGN) * ALIGN, 1, ALIGN, CHANNELS_LAST, ROWS
    )
    offset, mask = addresses(base, stride, inside, begin, end, 0, BLOCK)
    value = tl.load(x + offset, mask, other=0.0).to(acc)
    # Deviations from the first value: a large common mean cancels in them.
    pivot = tl.load(x + base, inside, other=0.0).to(acc)
    E_c = tl.load(running_mean + c, inside, other=0.0)
    V_c = tl.load(running_var + c, inside, other=1.0)
    w_m = vector(center_weight, c, inside, 0.0, acc, ROWS)
    gain = vector(weight, c, inside, 1.0, acc, ROWS)
    total = tl.where(mask, value - pivot[None, :], 0.0)
    if not HELD:
        for tile in range(1, tl.cdiv(end - begin, BLOCK)):
            offset, mask = addresses(base, stride, inside, begin, end, tile, BLOCK)
            value = tl.load(x + offset, mask, other=0.0).to(acc)
            total += tl.where(mask, value - pivot[None, :], 0.0)
    center = pivot + tl.sum(total, 0) / (end - begin).to(acc)
    r = inverse_deviation(V_c, eps)
    t = ((center - E_c) + w_m * center) * r
    if scale_weight is not None:
        w_v = tl.load(scale_weight + c, inside, other=0.0)
        w_b = tl.load(scale_bias + c, inside, other=0.0)
        gain *= restrict(w_v * t + w_b, RESTRICT)
    a = (gain * r)[None, :]
    b = (vector(bias, c, inside, 0.0, acc, ROWS) + gain * t)[None, :]
    if m is not None:
        tl.store(m + row, center, inside)
        first = inside & (row < C)
        tl.store(E + c, E_c, first)
        tl.store(V + c, V_c, first)
    for tile in range(1 if HELD else tl.cdiv(end - begin, BLOCK)):
        if not HELD:
            offset, mask = addresses(base, stride, inside, begin, end, tile, BLOCK)
            value = tl.load(x + offset, mask, other=0.0).to(acc)
        z = a * (value - center[None, :]) + b
        if residual is not None:
            z += tl.load(residual + offset, mask, other=0.0).to(acc)
        z = activate(z, slope, ACTIVATION)
        tl.store(y + offset, z.to(y.dtype.element_ty), mask)
