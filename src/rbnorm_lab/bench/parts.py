"""The parts of the benchmark: which shapes and networks, and how."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Final

from rbnorm_lab.bench.candidates import Part, compiled, eager
from rbnorm_lab.bench.cases import LAYOUTS, Case
from rbnorm_lab.bench.networks import RESNET50, SMALL_MODEL, every_norm, networks

Shape = tuple[int, ...]

# The inputs of ResNet-50's BatchNorm layers as (C, H, H), each once: H, and every C.
_LAYERS: Final = {
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
_SUITE: Final[tuple[Shape, ...]] = (
    *((32, C, H, H) for H, channels in _LAYERS.items() for C in channels),
    *((1, max(channels), H, H) for H, channels in _LAYERS.items()),
    *((128, *size) for size in _CIFAR),
)
# One for each kind of map: large, many channels on a small map, the smallest map, many instances.
_FEW: Final[tuple[Shape, ...]] = (
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
_BATCH: Final = (16, 3, 224, 224)
_ONE: Final = (1, 3, 224, 224)
_DIGITS: Final = (32, 1, 28, 28)


def _cases(part: str, *choices: tuple[str, str, Shape], dtype: str = "float32") -> tuple[Case, ...]:
    return tuple(Case(part, mode, dtype, layout, shape) for mode, layout, shape in choices)


_SUITES: Final = (
    _cases("layers", *product((mode,), LAYOUTS, (*_SUITE, PER_CALL)), dtype=dtype)
    for mode, dtype in product(_MODES, ("float32", "bfloat16"))
)
_STEPS: Final = tuple(("training", layout, _BATCH) for layout in LAYOUTS)
_MOBILENET: Final = "torchvision:mobilenet_v3_large"

PARTS: Final = {
    "layers": Part(tuple(case for suite in _SUITES for case in suite), eager),
    "short": Part(
        _cases("short", *((m, lay, s) for m in _MODES for lay, own in _SHORT.items() for s in own)),
        eager,
    ),
    "compiled": Part(_cases("compiled", *product(_MODES, ("nchw",), _FEW)), compiled),
    "models": Part(
        _cases("models", *_STEPS, ("inference", "nchw", _ONE)), partial(networks, name=RESNET50)
    ),
    "mobilenet": Part(_cases("mobilenet", *_STEPS), partial(networks, name=_MOBILENET)),
    "compiled-models": Part(
        _cases("compiled-models", ("training", "nchw", _BATCH)),
        partial(networks, name=RESNET50, compiled=True),
    ),
    "norms": Part(
        _cases("norms", *product(_MODES, ("channels_last",), (_DIGITS,))),
        partial(every_norm, name=SMALL_MODEL, classes=10),
    ),
    "norms-resnet50": Part(
        _cases(
            "norms-resnet50",
            ("training", "channels_last", _BATCH),
            ("inference", "channels_last", _ONE),
        ),
        partial(every_norm, name=RESNET50, classes=1000),
    ),
}
"""Parts by name."""
