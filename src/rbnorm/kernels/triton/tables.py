"""The table math, one launch a direction: programs take BLOCK_C channels and walk the instances.

Symbols are those of :mod:`rbnorm.autograd`. A table is (N, C); statistics come from the sweeps
per chunk of the positions and are merged here, tile by tile, always in the same order.
"""

import triton
import triton.language as tl

from rbnorm.kernels.triton.elementwise import restrict, restrict_slope
from rbnorm.kernels.triton.tiles import corrected, inverse_deviation, moved, vector

_jit = triton.jit(do_not_specialize=["N", "L", "chunk", "chunks"])


@triton.jit
def merged(mean, var, row, inside, stride, L, chunk, chunks, BLOCK_J: tl.constexpr):
    """Mean and biased variance (``var`` None: 0) of whole rows, each of the shape of ``row``."""
    if BLOCK_J == 1:
        m = tl.load(mean + row, inside, other=0.0)
        v = m * 0 if var is None else tl.load(var + row, inside, other=0.0)
    else:
        j = tl.arange(0, BLOCK_J)
        held = tl.maximum(tl.minimum(L - j.to(tl.int64) * chunk, chunk), 0)
        weight = (held.to(mean.dtype.element_ty) / L)[None, None, :]
        index = row[:, :, None] + (j.to(tl.int64) * stride)[None, None, :]
        valid = inside[:, :, None] & (j < chunks)[None, None, :]
        part = tl.load(mean + index, valid, other=0.0)
        rough = tl.sum(part * weight, 2)
        part = tl.where(valid, part - rough[:, :, None], 0.0)
        rest = tl.sum(part * weight, 2)
        m = rough + rest
        v = m * 0
        if var is not None:
            v = tl.sum((tl.load(var + index, valid, other=0.0) + part * part) * weight, 2)
            v = corrected(v, rest)
    return m, v


@triton.jit
def tile_of(step, c, N, C, BLOCK_N: tl.constexpr):
    """Row numbers of the ``step``-th BLOCK_N instances, (BLOCK_N, BLOCK_C), and which exist."""
    n = step * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (n < N)[:, None] & (c < C)[None, :]
    return n.to(tl.int64)[:, None] * C + c[None, :], inside


@_jit
def merge(
    mean, var, m, v,
    N, C, L, chunk, chunks,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """The statistics of whole rows, for the sweeps that are called by themselves."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    for step in range(tl.cdiv(N, BLOCK_N)):
        row, inside = tile_of(step, c, N, C, BLOCK_N)
        a, b = merged(mean, var, row, inside, N.to(tl.int64) * C, L, chunk, chunks, BLOCK_J)
        tl.store(m + row, a, inside)
        if var is not None:
            tl.store(v + row, b, inside)


@_jit
def forward(
    mean, var, m, scale, shift, E, V, weight, bias, center_weight, scale_weight, scale_bias,
    running_mean, running_var,
    N, C, L, chunk, chunks,
    momentum: tl.float64, correction: tl.float64, eps: tl.float64,
    TRAINING: tl.constexpr, RESTRICT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """m, E, V, the scale and shift of the second sweep, and the running statistics' update.

    ``y = scale (x - m) + shift``; ``correction`` is M / (M - 1), which makes V unbiased.
    """
    acc = scale.dtype.element_ty
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < C
    stride = N.to(tl.int64) * C
    w_m = vector(center_weight, c, known, 0.0, acc, BLOCK_C)
    origin = tl.zeros([1, BLOCK_C], acc)
    middle = tl.zeros([BLOCK_C], acc)
    if TRAINING:
        # Deviations are taken around the first instance, so that a large common mean cancels.
        start, present = tile_of(0, c, N, C, 1)
        origin = merged(mean, None, start, present, stride, L, chunk, chunks, BLOCK_J)[0]
        lane = tl.zeros([BLOCK_N, BLOCK_C], acc)
        square = tl.zeros([BLOCK_N, BLOCK_C], acc)
        within = tl.zeros([BLOCK_N, BLOCK_C], acc)
        for step in range(tl.cdiv(N, BLOCK_N)):
            row, inside = tile_of(step, c, N, C, BLOCK_N)
            k, v = merged(mean, var, row, inside, stride, L, chunk, chunks, BLOCK_J)
            delta = tl.where(inside, k - origin - lane, 0.0)
            lane += delta / (step + 1)
            square += delta * tl.where(inside, k - origin - lane, 0.0)
            within += v
        held = tl.cdiv(tl.maximum(N - tl.arange(0, BLOCK_N), 0), BLOCK_N).to(acc)[:, None]
        middle = tl.sum(lane * (held / N), 0)
        lane -= middle[None, :]
        between = tl.sum(square + held * lane * lane, 0) / N
        one = 1 + w_m
        mu = one * (tl.sum(origin, 0) + middle)
        var_z = tl.sum(within, 0) / N + one * one * between
        if running_mean is not None:
            f = tl.full([1], momentum, acc)
            new = var_z * tl.full([1], correction, acc)
            tl.store(running_mean + c, moved(running_mean, c, known, mu, f), known)
            tl.store(running_var + c, moved(running_var, c, known, new, f), known)
    else:
        mu = tl.load(running_mean + c, known, other=0.0)
        var_z = tl.load(running_var + c, known, other=1.0)
    tl.store(E + c, mu, known)
    tl.store(V + c, var_z, known)
    r = inverse_deviation(var_z, eps)
    gamma = vector(weight, c, known, 1.0, acc, BLOCK_C)
    beta = vector(bias, c, known, 0.0, acc, BLOCK_C)
    for step in range(tl.cdiv(N, BLOCK_N)):
        row, inside = tile_of(step, c, N, C, BLOCK_N)
        k = merged(mean, None, row, inside, stride, L, chunk, chunks, BLOCK_J)[0]
        if BLOCK_J > 1:
            tl.store(m + row, k, inside)
        d = k - origin - middle[None, :]
        d += w_m[None, :] * d
        if not TRAINING:
            d -= mu[None, :]
        t = d * r[None, :]
        gain = gamma[None, :]
        if scale_weight is not None:
            w_v = tl.load(scale_weight + c, known, other=0.0)[None, :]
            w_b = tl.load(scale_bias + c, known, other=0.0)[None, :]
            gain *= restrict(w_v * t + w_b, RESTRICT)
        tl.store(scale + row, tl.broadcast_to(gain * r[None, :], [BLOCK_N, BLOCK_C]), inside)
        tl.store(shift + row, beta[None, :] + gain * t, inside)


@triton.jit
def reaching(
    step, c, dz, dzx, m, origin, middle, mu, r, gamma, w_m, scale_weight, scale_bias,
    N, C, L, chunk, chunks,
    TRAINING: tl.constexpr, RESTRICT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """What reaches a tile of instances, as means over the positions.

    Returns the rows, their mask, the deviation of m, t, g, S1 = mean dz, D = mean dz o,
    dw_b = gamma D R', e = w_v dw_b, h = mean do, and gain = gamma g.
    """
    row, inside = tile_of(step, c, N, C, BLOCK_N)
    stride = N.to(tl.int64) * C
    S1 = merged(dz, None, row, inside, stride, L, chunk, chunks, BLOCK_J)[0]
    S2 = merged(dzx, None, row, inside, stride, L, chunk, chunks, BLOCK_J)[0]
    deviation = tl.load(m + row, inside, other=0.0) - origin[None, :] - middle[None, :]
    deviation = tl.where(inside, deviation, 0.0)
    d = deviation + w_m[None, :] * deviation
    if not TRAINING:
        d = tl.where(inside, d - mu[None, :], 0.0)
    t = d * r[None, :]
    D = r[None, :] * S2 + t * S1
    if scale_weight is not None:
        known = c < C
        w_v = tl.load(scale_weight + c, known, other=0.0)[None, :]
        s = w_v * t + tl.load(scale_bias + c, known, other=0.0)[None, :]
        g = restrict(s, RESTRICT)
        dw_b = gamma[None, :] * D * restrict_slope(s, g, RESTRICT)
        e = w_v * dw_b
    else:
        g = t * 0 + 1
        dw_b = t * 0
        e = t * 0
    gain = gamma[None, :] * g
    return row, inside, deviation, t, g, S1, D, dw_b, e, gain * S1 + e, gain


@_jit
def backward(
    dz, dzx, m, E, V, weight, center_weight, scale_weight, scale_bias, scale, x_scale, u,
    dweight, dbias, dcenter_weight, dscale_weight, dscale_bias,
    N, C, L, chunk, chunks,
    eps: tl.float64,
    TRAINING: tl.constexpr, RESTRICT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """The vectors' gradients, and of ``dx = scale dz + x_scale (x - m) + u`` the tables.

    ``scale`` is None where the sweep before has written it, a gradient where nobody wants it.
    """
    acc = m.dtype.element_ty
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = c < C
    w_m = vector(center_weight, c, known, 0.0, acc, BLOCK_C)
    gamma = vector(weight, c, known, 1.0, acc, BLOCK_C)
    mu = tl.load(E + c, known, other=0.0)
    r = inverse_deviation(tl.load(V + c, known, other=1.0), eps)
    origin = tl.zeros([BLOCK_C], acc)
    middle = tl.zeros([BLOCK_C], acc)
    empty = tl.zeros([BLOCK_N, BLOCK_C], acc)
    if TRAINING:
        origin = tl.load(m + c, known, other=0.0)
        total = empty
        for step in range(tl.cdiv(N, BLOCK_N)):
            row, inside = tile_of(step, c, N, C, BLOCK_N)
            total += tl.where(inside, tl.load(m + row, inside, other=0.0) - origin[None, :], 0.0)
        middle = tl.sum(total, 0) / N

    sum_h = empty
    sum_ho = empty
    sum_gamma = empty
    sum_beta = empty
    sum_w_v = empty
    sum_w_b = empty
    for step in range(tl.cdiv(N, BLOCK_N)):
        row, inside, _, t, g, S1, D, dw_b, e, h, gain = reaching(
            step, c, dz, dzx, m, origin, middle, mu, r, gamma, w_m, scale_weight, scale_bias,
            N, C, L, chunk, chunks, TRAINING, RESTRICT, BLOCK_N, BLOCK_J,
        )  # fmt: skip
        sum_h += h
        sum_ho += gain * D + e * t
        sum_gamma += g * D
        sum_beta += S1
        sum_w_v += dw_b * t
        sum_w_b += dw_b
        if scale is not None:
            tl.store(scale + row, gain * r[None, :], inside)
    if dweight is not None:
        tl.store(dweight + c, tl.sum(sum_gamma, 0) * L, known)
    if dbias is not None:
        tl.store(dbias + c, tl.sum(sum_beta, 0) * L, known)
    if dscale_weight is not None:
        tl.store(dscale_weight + c, tl.sum(sum_w_v, 0) * L, known)
        tl.store(dscale_bias + c, tl.sum(sum_w_b, 0) * L, known)

    mean_h = tl.zeros([BLOCK_C], acc)
    slope = tl.zeros([BLOCK_C], acc)
    if TRAINING:  # what reaches x through E and V
        mean_h = tl.sum(sum_h, 0) / N
        slope = tl.sum(sum_ho, 0) / N
        if x_scale is not None:
            tl.store(x_scale + c, -r * r * slope, known)
    sum_w_m = empty
    for step in range(tl.cdiv(N, BLOCK_N)):
        row, inside, deviation, t, g, S1, D, dw_b, e, h, gain = reaching(
            step, c, dz, dzx, m, origin, middle, mu, r, gamma, w_m, scale_weight, scale_bias,
            N, C, L, chunk, chunks, TRAINING, RESTRICT, BLOCK_N, BLOCK_J,
        )  # fmt: skip
        common = mean_h[None, :] + t * slope[None, :]
        # In training the sum of Z over the instances is 0: the common mean drops out of dw_m.
        Z = r[None, :] * (h - common)
        sum_w_m += deviation * Z
        if u is not None:
            tl.store(u + row, r[None, :] * (e - common) + w_m[None, :] * Z, inside)
    if dcenter_weight is not None:
        tl.store(dcenter_weight + c, tl.sum(sum_w_m, 0) * L, known)
