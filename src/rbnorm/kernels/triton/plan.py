"""How a shape is cut into programs, and the memory the launches need."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from rbnorm.kernels import phases
from rbnorm.kernels.triton import sweeps
from rbnorm.kernels.triton.tiles import rows_per_tile

PROGRAMS = 2048  # fills the GPUs of today: 132 multiprocessors of an H100 hold about 1000
MAX_WIDTH = 4096
MAX_CHUNKS = 128  # what a table kernel merges in one tile
TABLE_TILE = 1024
TABLE_CHANNELS = 8  # 32 bytes of float32, the sector of a load


class Plan(NamedTuple):
    """The launches over (N, C, L); see :mod:`rbnorm.kernels.triton.tiles`.

    ``sizes`` are N, C, L, the chunk's length and their number, which every kernel takes;
    ``options`` the compile-time choices of every sweep, ``table_options`` of a table kernel.
    """

    sizes: tuple[int, int, int, int, int]
    options: dict[str, int | bool]
    table_options: dict[str, int]

    @property
    def chunks(self) -> int:
        """The number of chunks of the positions."""
        return self.sizes[4]

    def grid(self, meta: dict[str, Any]) -> tuple[int]:
        """A sweep's grid: one axis, which takes 2^31 - 1 programs where the others take 65535."""
        N, C, _, _, chunks = self.sizes
        width, last = self.options["WIDTH"], self.options["CHANNELS_LAST"]
        return (triton.cdiv(N * C, rows_per_tile(width, meta["TILE"], last)) * chunks,)

    @property
    def table_grid(self) -> tuple[int]:
        """A table kernel's grid."""
        return (triton.cdiv(self.sizes[1], TABLE_CHANNELS),)


@functools.lru_cache(maxsize=4096)
def plan(N: int, C: int, L: int, channels_last: bool) -> Plan:
    """Split the positions into chunks where the rows alone make too few programs."""
    tile = sweeps.CONFIGS[0].kwargs["TILE"]
    if channels_last:  # at least 64 channels side by side, more where there are few positions
        deep = tile // triton.next_power_of_2(L)
        width = min(triton.next_power_of_2(C), max(64, deep))
    else:
        width = min(triton.next_power_of_2(L), MAX_WIDTH)
    rows = rows_per_tile(width, tile, channels_last)
    wanted = min(triton.cdiv(PROGRAMS, triton.cdiv(N * C, rows)), MAX_CHUNKS)
    unit = max(16, 2 * tile // rows)  # two tiles of work, and a multiple of every alignment
    chunk = triton.cdiv(triton.cdiv(L, wanted), unit) * unit
    chunks = triton.cdiv(L, chunk)
    along = C if channels_last else L
    parts = triton.next_power_of_2(chunks)
    most = max(1, TABLE_TILE // TABLE_CHANNELS // parts)
    instances = min(triton.next_power_of_2(N), most)
    return Plan(
        (N, C, L, chunk, chunks),
        {"WIDTH": width, "ALIGN": min(along & -along, 16), "CHANNELS_LAST": channels_last},
        {"BLOCK_N": instances, "BLOCK_C": TABLE_CHANNELS, "BLOCK_J": parts},
    )


def prepare(x: Tensor, *others: Tensor | None) -> tuple[Plan, Tensor, list[Any]]:
    """The plan for ``x``, and ``x`` and ``others`` in the layout of the output.

    That is channels_last where ``x`` is so, contiguous elsewhere; what lies otherwise is copied.
    """
    layout = torch.contiguous_format
    if not x.is_contiguous():
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
        if last is not None and x.is_contiguous(memory_format=last):
            layout = last
    N, C = x.shape[:2]
    chosen = plan(N, C, phases.positions(x), layout != torch.contiguous_format)
    return (
        chosen,
        x.contiguous(memory_format=layout),
        [t if t is None else t.contiguous(memory_format=layout) for t in others],
    )


def tables(x: Tensor, count: int, chunks: int = 1) -> list[Tensor]:
    """Uninitialised (N, C) tables, or (chunks, N, C) where there are several chunks."""
    dtype = phases.table_dtype(x.dtype)
    shape = (chunks, *x.shape[:2]) if chunks > 1 else x.shape[:2]
    return [x.new_empty(shape, dtype=dtype) for _ in range(count)]


def vectors(x: Tensor, count: int) -> list[Tensor]:
    """Uninitialised (C,) vectors."""
    dtype = phases.table_dtype(x.dtype)
    return [x.new_empty(x.shape[1], dtype=dtype) for _ in range(count)]
