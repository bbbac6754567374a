"""The parts that time one layer."""

from __future__ import annotations

from itertools import product
from typing import Final

from rbnorm.lab.bench.candidates import compiled, eager
from rbnorm.lab.bench.measure import Part
from rbnorm.lab.bench.rows import Case

Shape = tuple[int, int, int, int]

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
COMPILED: Final = Part(
    tuple(Case("compiled", mode, "float32", "nchw", s) for mode, s in product(_MODES, _COMPILED)),
    compiled,
)
