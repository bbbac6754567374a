"""What the kernels share: where a program's tile lies, per-channel vectors.

A *row* is one channel of one instance, numbered n * C + c; its values are the L positions. A
sweep's tile is (BLOCK positions, ROWS rows). The axis that is contiguous in memory, positions or,
in channels_last, channels, is WIDTH long up to the tile's size; the other one takes what is left.
"""

# No `from __future__ import annotations`: Triton reads the annotations.

import triton
import triton.language as tl


@triton.constexpr_function
def rows_per_tile(WIDTH, TILE, CHANNELS_LAST):
    """The tile's size along the rows."""
    along = min(WIDTH, TILE)
    return along if CHANNELS_LAST else TILE // along


@triton.jit
def locate(
    N,
    C,
    L,
    chunk,
    chunks,
    ALIGN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    BACKWARDS: tl.constexpr = False,
):
    """This program's rows, their channels and addresses, and its chunk of their positions.

    The programs run from the end of memory to its beginning where they go ``BACKWARDS``: what is
    read then finds in the cache what was written last, and leaves there what is read next.

    Everything that grows with the input is int64. ALIGN divides the length of the contiguous axis
    and of a chunk: dividing and multiplying by it is how the compiler learns that, and so may use
    128-bit accesses for lengths such as 14 x 14, which 16 does not divide.
    """
    pid = tl.program_id(0)
    if BACKWARDS:
        pid = tl.num_programs(0) - 1 - pid
    part = (pid % chunks).to(tl.int64)
    first = (pid // chunks).to(tl.int64) * ROWS
    if CHANNELS_LAST:
        C = C // ALIGN * ALIGN
    else:
        L = L // ALIGN * ALIGN
    n = first // C
    c = (first - n * C).to(tl.int32) + tl.arange(0, ROWS)
    row = first + tl.arange(0, ROWS)
    inside = row < N.to(tl.int64) * C
    if CHANNELS_LAST:
        base = (n + c // C) * L * C + c % C
        stride = C
    else:
        base = row * L
        stride = 1
    begin = part * (chunk // ALIGN * ALIGN)
    end = tl.minimum(begin + chunk // ALIGN * ALIGN, L)
    return row, c % C, inside, base, stride, begin, end, part


@triton.jit
def addresses(base, stride, inside, begin, end, tile, BLOCK: tl.constexpr):
    """Offsets and mask of the ``tile``-th tile of a chunk, each (BLOCK, ROWS)."""
    position = begin + tile * BLOCK + tl.arange(0, BLOCK)
    return base[None, :] + position[:, None] * stride, (position < end)[:, None] & inside[None, :]


@triton.jit
def vector(pointer, c, inside, absent: tl.constexpr, dtype: tl.constexpr, SIZE: tl.constexpr):
    """A (C,) parameter at the channels ``c``, or ``absent`` where the layer has none."""
    if pointer is None:
        value = tl.full([SIZE], absent, dtype)
    else:
        value = tl.load(pointer + c, inside, other=absent)
    return value


@triton.jit
def inverse_deviation(V, eps):
    """``r = (V + eps)^(-1/2)``."""
    return tl.rsqrt(V + tl.full([1], eps, V.dtype))


@triton.jit
def corrected(v, rest):
    """A variance around what lies ``rest`` off the mean, made the one around the mean.

    What has overflowed stays infinite, as in BatchNorm, where the correction would make it NaN.
    """
    around = v - tl.where(v < float("inf"), rest * rest, 0.0)
    return tl.where(around < 0, 0.0, around)


@triton.jit
def moved(running, c, inside, batch, momentum):
    """One step of a running statistic, as BatchNorm takes it: an infinite one stays infinite."""
    return (1 - momentum) * tl.load(running + c, inside, other=0.0) + momentum * batch
