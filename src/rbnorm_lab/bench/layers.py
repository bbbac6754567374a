"""The parts that time one layer."""

from __future__ import annotations

from itertools import product
from typing import Final

from rbnorm_lab.bench.candidates import compiled, eager
from rbnorm_lab.bench.cases import LAYOUTS, Case
from rbnorm_lab.bench.measure import Part

Shape = tuple[int, ...]

# The inputs of ResNet-50's BatchNorm layers as (C, H, H), each once: H, and every C.
_RESNET50: Final = {
    112: (64,),
    56: (64, 256, 128),
    28: (128, 512, 256),
    14: (256, 1024, 512),
    7: (512, 2048),
}
# The three resolutions of ResNet-20 and its kin on CIFAR.
_CIFAR: Final = ((16, 32, 32), (32, 16, 16), (64, 8, 8))

PER_CALL: Final = (1, 64, 8, 8)
"""A map so small that what is timed is the cost of a call; not part of the suite."""

# At batch 1 a call is short and says less by itself: the widest layer of every resolution.
SUITE: Final[tuple[Shape, ...]] = (
    *((32, C, H, H) for H, channels in _RESNET50.items() for C in channels),
    *((1, max(channels), H, H) for H, channels in _RESNET50.items()),
    *((128, *size) for size in _CIFAR),
)
# One for each kind of map: large, many channels on a small map, the smallest map, many instances.
FEW: Final[tuple[Shape, ...]] = (
    (32, 256, 56, 56),
    (32, 1024, 14, 14),
    (32, 2048, 7, 7),
    (128, 16, 32, 32),
)
# Fewer contiguous positions, or channels side by side, than a vector has numbers: what MLPs and
# projection heads, squeeze-and-excitation, point clouds and images make of it.
_SHORT: Final[dict[str, tuple[Shape, ...]]] = {
    "nchw": (
        (100000, 3),
        (4096, 512),
        (4096, 32, 2),
        (512, 128, 7),
        (256, 96, 15),
        (4096, 64, 2, 2),
        (1800, 64, 3, 3),
        (256, 2048, 1, 1),
    ),
    "channels_last": (
        (4, 3, 512, 512),
        (8, 12, 128, 128),
        (32, 20, 28, 28),
        (2048, 256, 2, 2),
        (64, 1024, 4, 4),
    ),
}
_MODES: Final = ("training", "inference")

LAYER_PARTS: Final = {
    "layers": Part(
        tuple(
            Case("layers", *choice)
            for choice in product(_MODES, ("float32", "bfloat16"), LAYOUTS, (*SUITE, PER_CALL))
        ),
        eager,
    ),
    "short": Part(
        tuple(
            Case("short", mode, "float32", layout, shape)
            for mode in _MODES
            for layout, shapes in _SHORT.items()
            for shape in shapes
        ),
        eager,
    ),
    "compiled": Part(
        tuple(Case("compiled", mode, "float32", "nchw", s) for mode, s in product(_MODES, FEW)),
        compiled,
    ),
}
"""Parts by name."""
