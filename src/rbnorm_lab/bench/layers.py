"""The parts that time one layer."""

from __future__ import annotations

from itertools import product
from typing import Final

from rbnorm_lab.bench.candidates import compiled, eager
from rbnorm_lab.bench.measure import Part
from rbnorm_lab.bench.rows import Case

Shape = tuple[int, ...]

# The inputs of ResNet-50's BatchNorm layers as (C, H, W), each once.
_RESNET50: Final = (
    (64, 112, 112),
    (64, 56, 56),
    (256, 56, 56),
    (128, 56, 56),
    (128, 28, 28),
    (512, 28, 28),
    (256, 28, 28),
    (256, 14, 14),
    (1024, 14, 14),
    (512, 14, 14),
    (512, 7, 7),
    (2048, 7, 7),
)
# At batch 1 a call is short and says less by itself: the widest layer of every resolution.
_BATCH_1: Final = ((64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))
# The three resolutions of ResNet-20 and its kin on CIFAR.
_CIFAR: Final = ((16, 32, 32), (32, 16, 16), (64, 8, 8))

PER_CALL: Final = (1, 64, 8, 8)
"""A map so small that what is timed is the cost of a call; not part of the suite."""

SUITE: Final[tuple[Shape, ...]] = (
    *((32, *size) for size in _RESNET50),
    *((1, *size) for size in _BATCH_1),
    *((128, *size) for size in _CIFAR),
)
# One for each kind of map: large, many channels on a small map, the smallest map, many instances.
_COMPILED: Final[tuple[Shape, ...]] = (
    (32, 256, 56, 56),
    (32, 1024, 14, 14),
    (32, 2048, 7, 7),
    (128, 16, 32, 32),
)

# Fewer contiguous positions, or channels side by side, than a vector has numbers: what MLPs and
# projection heads, squeeze-and-excitation, point clouds and images make of it.
_SHORT: Final[tuple[tuple[str, Shape], ...]] = (
    *(
        ("nchw", shape)
        for shape in (
            (100000, 3),
            (4096, 512),
            (4096, 32, 2),
            (512, 128, 7),
            (256, 96, 15),
            (4096, 64, 2, 2),
            (1800, 64, 3, 3),
            (256, 2048, 1, 1),
        )
    ),
    *(
        ("channels_last", shape)
        for shape in (
            (4, 3, 512, 512),
            (8, 12, 128, 128),
            (32, 20, 28, 28),
            (2048, 256, 2, 2),
            (64, 1024, 4, 4),
        )
    ),
)

_MODES: Final = ("training", "inference")

LAYERS: Final = Part(
    tuple(
        Case("layers", *choice)
        for choice in product(
            _MODES, ("float32", "bfloat16"), ("nchw", "channels_last"), (*SUITE, PER_CALL)
        )
    ),
    eager,
)
SHORT: Final = Part(
    tuple(Case("short", mode, "float32", *choice) for mode, choice in product(_MODES, _SHORT)),
    eager,
)
COMPILED: Final = Part(
    tuple(Case("compiled", mode, "float32", "nchw", s) for mode, s in product(_MODES, _COMPILED)),
    compiled,
)
