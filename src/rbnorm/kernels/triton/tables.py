"""The table math, one launch a direction: programs take BLOCK_C channels and walk the instances.

Symbols are those of ``docs/math.md``. A table is (N, C); statistics come from the sweeps per
chunk of the positions and are merged here, tile by tile, always in the same order.
"""

import triton
import triton.language as tl

from rbnorm.kernels.triton.elementwise import restrict, restrict_grad
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
    exists = c < C
    stride = N.to(tl.int64) * C
    w_m = vector(center_weight, c, exists, 0.0, acc, BLOCK_C)
    first = tl.zeros([1, BLOCK_C], acc)
    offset = tl.zeros([BLOCK_C], acc)
    if TRAINING:
        # Deviations are taken around the first instance, so that a large common mean cancels.
        start, present = tile_of(0, c, N, C, 1)
        first = merged(mean, None, start, present, stride, L, chunk, chunks, BLOCK_J)[0]
        lane = tl.zeros([BLOCK_N, BLOCK_C], acc)
        square = tl.zeros([BLOCK_N, BLOCK_C], acc)
        within = tl.zeros([BLOCK_N, BLOCK_C], acc)
        for step in range(tl.cdiv(N, BLOCK_N)):
            row, inside = tile_of(step, c, N, C, BLOCK_N)
            m_n, v = merged(mean, var, row, inside, stride, L, chunk, chunks, BLOCK_J)
            delta = tl.where(inside, m_n - first - lane, 0.0)
            lane += delta / (step + 1)
            square += delta * tl.where(inside, m_n - first - lane, 0.0)
            within += v
        held = tl.cdiv(tl.maximum(N - tl.arange(0, BLOCK_N), 0), BLOCK_N).to(acc)[:, None]
        offset = tl.sum(lane * (held / N), 0)
        lane -= offset[None, :]
        between = tl.sum(square + held * lane * lane, 0) / N
        amplify = 1 + w_m
        E_c = amplify * (tl.sum(first, 0) + offset)
        V_c = tl.sum(within, 0) / N + amplify * amplify * between
        if running_mean is not None:
            f = tl.full([1], momentum, acc)
            new = V_c * tl.full([1], correction, acc)
            tl.store(running_mean + c, moved(running_mean, c, exists, E_c, f), exists)
            tl.store(running_var + c, moved(running_var, c, exists, new, f), exists)
    else:
        E_c = tl.load(running_mean + c, exists, other=0.0)
        V_c = tl.load(running_var + c, exists, other=1.0)
    tl.store(E + c, E_c, exists)
    tl.store(V + c, V_c, exists)
    r = inverse_deviation(V_c, eps)
    gamma = vector(weight, c, exists, 1.0, acc, BLOCK_C)
    beta = vector(bias, c, exists, 0.0, acc, BLOCK_C)
    for step in range(tl.cdiv(N, BLOCK_N)):
        row, inside = tile_of(step, c, N, C, BLOCK_N)
        m_n = merged(mean, None, row, inside, stride, L, chunk, chunks, BLOCK_J)[0]
        if BLOCK_J > 1:
            tl.store(m + row, m_n, inside)
        d = m_n - first - offset[None, :]
        d += w_m[None, :] * d
        if not TRAINING:
            d -= E_c[None, :]
        t = d * r[None, :]
        gain = gamma[None, :]
        if scale_weight is not None:
            w_v = tl.load(scale_weight + c, exists, other=0.0)[None, :]
            w_b = tl.load(scale_bias + c, exists, other=0.0)[None, :]
            gain *= restrict(w_v * t + w_b, RESTRICT)
        tl.store(scale + row, tl.broadcast_to(gain * r[None, :], [BLOCK_N, BLOCK_C]), inside)
        tl.store(shift + row, beta[None, :] + gain * t, inside)


@triton.jit
def reaching(
    step, c, mean_dz, mean_dzx, m, first, offset, E_c, r, gamma, w_m, scale_weight, scale_bias,
    N, C, L, chunk, chunks,
    TRAINING: tl.constexpr, RESTRICT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """What reaches a tile of instances, as means over the positions.

    Returns the rows, their mask, the deviation of m, t, g, S1 = mean dz, D = mean dz o,
    dw_b = gamma D R', e = w_v dw_b, h = mean do, and gain = gamma g.
    """
    row, inside = tile_of(step, c, N, C, BLOCK_N)
    stride = N.to(tl.int64) * C
    S1 = merged(mean_dz, None, row, inside, stride, L, chunk, chunks, BLOCK_J)[0]
    S2 = merged(mean_dzx, None, row, inside, stride, L, chunk, chunks, BLOCK_J)[0]
    deviation = tl.load(m + row, inside, other=0.0) - first[None, :] - offset[None, :]
    deviation = tl.where(inside, deviation, 0.0)
    d = deviation + w_m[None, :] * deviation
    if not TRAINING:
        d = tl.where(inside, d - E_c[None, :], 0.0)
    t = d * r[None, :]
    D = r[None, :] * S2 + t * S1
    if scale_weight is not None:
        exists = c < C
        w_v = tl.load(scale_weight + c, exists, other=0.0)[None, :]
        s = w_v * t + tl.load(scale_bias + c, exists, other=0.0)[None, :]
        g = restrict(s, RESTRICT)
        dw_b = gamma[None, :] * D * restrict_grad(s, g, RESTRICT)
        e = w_v * dw_b
    else:
        g = t * 0 + 1
        dw_b = t * 0
        e = t * 0
    gain = gamma[None, :] * g
    return row, inside, deviation, t, g, S1, D, dw_b, e, gain * S1 + e, gain


@_jit
def backward(
    mean_dz, mean_dzx, m, E, V, weight, center_weight, scale_weight, scale_bias, scale, x_scale, u,
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
    exists = c < C
    w_m = vector(center_weight, c, exists, 0.0, acc, BLOCK_C)
    gamma = vector(weight, c, exists, 1.0, acc, BLOCK_C)
    E_c = tl.load(E + c, exists, other=0.0)
    r = inverse_deviation(tl.load(V + c, exists, other=1.0), eps)
    first = tl.zeros([BLOCK_C], acc)
    offset = tl.zeros([BLOCK_C], acc)
    zeros = tl.zeros([BLOCK_N, BLOCK_C], acc)
    if TRAINING:
        first = tl.load(m + c, exists, other=0.0)
        total = zeros
        for step in range(tl.cdiv(N, BLOCK_N)):
            row, inside = tile_of(step, c, N, C, BLOCK_N)
            total += tl.where(inside, tl.load(m + row, inside, other=0.0) - first[None, :], 0.0)
        offset = tl.sum(total, 0) / N

    sum_h = zeros
    sum_ho = zeros
    sum_gamma = zeros
    sum_beta = zeros
    sum_w_v = zeros
    sum_w_b = zeros
    for step in range(tl.cdiv(N, BLOCK_N)):
        row, inside, _, t, g, S1, D, dw_b, e, h, gain = reaching(
            step, c, mean_dz, mean_dzx, m, first, offset, E_c, r, gamma, w_m, scale_weight,
            scale_bias, N, C, L, chunk, chunks, TRAINING, RESTRICT, BLOCK_N, BLOCK_J,
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
        tl.store(dweight + c, tl.sum(sum_gamma, 0) * L, exists)
    if dbias is not None:
        tl.store(dbias + c, tl.sum(sum_beta, 0) * L, exists)
    if dscale_weight is not None:
        tl.store(dscale_weight + c, tl.sum(sum_w_v, 0) * L, exists)
        tl.store(dscale_bias + c, tl.sum(sum_w_b, 0) * L, exists)

    a1 = tl.zeros([BLOCK_C], acc)
    a2 = tl.zeros([BLOCK_C], acc)
    if TRAINING:  # what reaches x through E and V
        a1 = tl.sum(sum_h, 0) / N
        a2 = tl.sum(sum_ho, 0) / N
        if x_scale is not None:
            tl.store(x_scale + c, -r * r * a2, exists)
    sum_w_m = zeros
    for step in range(tl.cdiv(N, BLOCK_N)):
        row, inside, deviation, t, g, S1, D, dw_b, e, h, gain = reaching(
            step, c, mean_dz, mean_dzx, m, first, offset, E_c, r, gamma, w_m, scale_weight,
            scale_bias, N, C, L, chunk, chunks, TRAINING, RESTRICT, BLOCK_N, BLOCK_J,
        )  # fmt: skip
        common = a1[None, :] + t * a2[None, :]
        # In training the sum of Z over the instances is 0: the common mean drops out of dw_m.
        Z = r[None, :] * (h - common)
        sum_w_m += deviation * Z
        if u is not None:
            tl.store(u + row, r[None, :] * (e - common) + w_m[None, :] * Z, inside)
    if dcenter_weight is not None:
        tl.store(dcenter_weight + c, tl.sum(sum_w_m, 0) * L, exists)
