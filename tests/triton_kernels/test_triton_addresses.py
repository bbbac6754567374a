"""Address arithmetic beyond 2^31 elements, computed without the memory."""

import pytest
import torch
import triton
import triton.language as tl

from rbnorm.kernels.triton.tiles import addresses, locate


@triton.jit
def last_addresses(
    out,
    N,
    C,
    L,
    chunk,
    chunks,
    ALIGN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each row's number, channel and last address that its chunk may touch."""
    row, c, inside, base, stride, begin, end, part = locate(
        N, C, L, chunk, chunks, ALIGN, CHANNELS_LAST, ROWS
    )
    tile = tl.cdiv(end - begin, BLOCK) - 1
    offset, mask = addresses(base, stride, inside, begin, end, tile, BLOCK)
    last = tl.max(tl.where(mask, offset, -1), 0)
    at = part * N * C + row
    tl.store(out + at * 3, row, inside)
    tl.store(out + at * 3 + 1, c.to(tl.int64), inside)
    tl.store(out + at * 3 + 2, last, inside)


@pytest.mark.parametrize(
    ("N", "C", "L", "chunk", "channels_last"),
    [
        (3, 1, 2**31 + 16, 2**31 + 16, False),
        (2, 3, 2**32 + 16, 2**31, False),
        (3, 48, 2**27, 2**27, False),
        (3, 48, 2**27, 2**26 + 16, True),
        (2, 3, 2**31 - 1, 2**30, True),
        (5, 3, 7, 16, True),
    ],
)
def test_offsets_are_exact(N, C, L, chunk, channels_last):
    chunks, rows = triton.cdiv(L, chunk), 16
    along = C if channels_last else L
    out = torch.full((chunks, N, C, 3), -7)
    last_addresses[(triton.cdiv(N * C, rows) * chunks,)](
        out, N, C, L, chunk, chunks, min(along & -along, 16), channels_last, rows, 64
    )
    for j in range(chunks):
        position = min((j + 1) * chunk, L) - 1
        for n in range(N):
            for c in range(C):
                row = n * C + c
                address = (n * L + position) * C + c if channels_last else row * L + position
                assert out[j, n, c].tolist() == [row, c, address]
