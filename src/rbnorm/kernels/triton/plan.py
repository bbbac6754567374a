"""How a shape is cut into programs."""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton

from rbnorm.kernels.triton.sweeps import CONFIGS, Config
from rbnorm.kernels.triton.tiles import rows_per_tile

PROGRAMS = 2048  # fills the GPUs of today: 132 multiprocessors of an H100 hold about 1000
MAX_WIDTH = 4096
MAX_CHUNKS = 128  # what a table kernel merges in one tile
TABLE_CHANNELS = 8  # at most, 32 bytes of float32, the sector of a load
TABLE_PROGRAMS = 128  # worth a smaller share of each sector
TABLE_TILE = 2048  # values; 8 channels of 256 instances without a second, dependent load
TABLE_TILE_OF_CHUNKS = 512  # more of them spill
LANES = 32  # values of a tile for a thread of a warp
LARGEST_HELD = 16384  # values that a program holds in registers, 32 of a thread
LARGEST_LOOP = 2**16  # values that a lone program may read


WholeOptions = tuple[int, int, bool, int, bool] | None


class Sweep(NamedTuple):
    """The compile-time options that every sweep takes first, in the order of its arguments."""

    WIDTH: int
    ALIGN: int
    CHANNELS_LAST: bool


class Plan(NamedTuple):
    """The launches over (N, C, L); see :mod:`rbnorm.kernels.triton.tiles`.

    Attributes:
        sizes: N, C, L, the chunk's length and their number, which sweeps and table kernels take.
        sweep: Of every sweep.
        table: BLOCK_N, BLOCK_C and BLOCK_J of a table kernel; its warps and its programs.
        whole: WIDTH, ALIGN, CHANNELS_LAST, TILE and HELD where one launch does all of evaluation,
            its warps and its programs; None where they would be too few.
    """

    sizes: tuple[int, int, int, int, int]
    sweep: Sweep
    table: tuple[int, int, int]
    table_warps: int
    table_programs: int
    whole: WholeOptions
    whole_warps: int
    whole_programs: int

    @property
    def chunks(self) -> int:
        """The number of chunks of the positions."""
        return self.sizes[4]

    def programs(self, config: Config) -> int:
        """Of a sweep; on one axis, which takes 2^31 - 1 programs where the others take 65535."""
        N, C, _, _, chunks = self.sizes
        width, _, last, tile = self.options(config)
        return int(triton.cdiv(N * C, rows_per_tile(width, tile, last))) * chunks

    def options(self, config: Config) -> tuple[int, int, bool, int]:
        """WIDTH, ALIGN, CHANNELS_LAST and TILE of a sweep."""
        width, align, last = self.sweep
        if last:
            width = min(width * config.broad, triton.next_power_of_2(self.sizes[1]))
        return width, align, last, config.tile


@functools.lru_cache(maxsize=4096)
def plan(N: int, C: int, L: int, channels_last: bool) -> Plan:
    """Split the positions into chunks where the rows alone make too few programs."""
    tile = CONFIGS[0].tile
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
    align = min(along & -along, 16)
    parts = triton.next_power_of_2(chunks)
    side = min(TABLE_CHANNELS, max(1, triton.next_power_of_2(C) // TABLE_PROGRAMS))  # channels
    most = TABLE_TILE if parts == 1 else TABLE_TILE_OF_CHUNKS
    instances = min(triton.next_power_of_2(N), max(1, most // side // parts))
    table_tile = instances * parts * side
    return Plan(
        (N, C, L, chunk, chunks),
        Sweep(width, align, channels_last),
        (instances, side, parts),
        max(4, table_tile // (8 * LANES)),
        triton.cdiv(C, side),
        *_whole(N, C, L, align, channels_last),
    )


def _whole(
    N: int, C: int, L: int, align: int, channels_last: bool
) -> tuple[WholeOptions, int, int]:
    """Of the kernel that does all of evaluation: its options, warps and programs."""
    length, broad = triton.next_power_of_2(L), triton.next_power_of_2(C)
    if channels_last:
        width = min(broad, max(16, min(64, 8192 // length)))  # channels
        held = length * width <= LARGEST_HELD
        width = width if held else min(broad, 32)
        tile = max(1024, length * width) if held else 4096
    else:
        held = length <= LARGEST_HELD
        width = length if held else MAX_WIDTH
        tile = max(2048, width)
    rows = rows_per_tile(width, tile, channels_last)
    programs = triton.cdiv(N * C, rows)
    if not held and programs < 256 and L * rows > LARGEST_LOOP:
        return None, 0, 0
    warps = min(16, max(4, tile // (16 * LANES)))
    return (width, align, channels_last, tile, held), warps, programs
