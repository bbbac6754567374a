"""The parts that time a whole network: as it is trained, and with every norm in it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import rbnorm
from rbnorm_cli.names import NORMS
from rbnorm_lab.bench.candidates import Subject, literally, network
from rbnorm_lab.bench.cases import BASELINE, LAYOUTS, Case
from rbnorm_lab.bench.measure import Part
from rbnorm_lab.models import build_model

SMALL_MODEL: Final = "cifar-resnet8"
_RESNET50: Final = "torchvision:resnet50"


def _built(name: str, norm: str, case: Case, classes: int = 1000) -> nn.Module:
    return build_model(name, norm, classes=classes, channels=case.shape[1], seed=0)


def eager(case: Case, device: torch.device, name: str = _RESNET50) -> list[Subject]:
    """A network with BatchNorm, with RBN by the device's backend, and with the literal one."""
    make = partial(network, case=case, device=device)
    backend = rbnorm.backends()[device.type].name
    return [
        make(BASELINE, _built(name, "bn", case), "torch"),
        make("rbnorm", _built(name, "rbn", case), backend),
        make("literal", literally(_built(name, "rbn", case)), "torch"),
    ]


def compiled(case: Case, device: torch.device) -> list[Subject]:
    """BatchNorm, and what ``torch.compile`` makes of it and of RBN."""
    torch.compiler.reset()
    make = partial(network, case=case, device=device)
    return [
        make(BASELINE, _built(_RESNET50, "bn", case), "torch"),
        make("compiled batchnorm", _built(_RESNET50, "bn", case), "inductor"),
        make("compiled rbnorm", _built(_RESNET50, "rbn", case), "inductor"),
    ]


def every_norm(case: Case, device: torch.device, name: str, classes: int) -> list[Subject]:
    """The network with every norm, counted."""
    ours = rbnorm.backends()[device.type].name
    return [
        _counted(
            network(
                BASELINE if norm == "bn" else norm,
                _built(name, norm, case, classes),
                ours if norm.startswith("rbn") else "torch",
                case=case,
                device=device,
                classes=classes,
            )
        )
        for norm in NORMS
    ]


def _counted(subject: Subject) -> Subject:
    """The subject with the sizes of its model, and the operations that one call of it takes.

    PyTorch counts two operations for every multiplication and addition of convolutions and matrix
    products, forward and backward, and none for what works element by element.
    """
    assert subject.model is not None
    with subject.ready(), FlopCounterMode(display=False) as counter:
        subject.call()
    counts = {
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "buffers": sum(buffer.numel() for buffer in subject.model.buffers()),
        "flops": counter.get_total_flops(),
    }
    return replace(subject, counts=counts)


def _cases(part: str, *choices: tuple[str, str, tuple[int, ...]]) -> tuple[Case, ...]:
    return tuple(Case(part, mode, "float32", layout, shape) for mode, layout, shape in choices)


_BATCH: Final = (16, 3, 224, 224)
_ONE: Final = (1, 3, 224, 224)
_DIGITS: Final = (32, 1, 28, 28)
_STEPS: Final = tuple(("training", layout, _BATCH) for layout in LAYOUTS)

NETWORK_PARTS: Final = {
    "models": Part(_cases("models", *_STEPS, ("inference", "nchw", _ONE)), eager),
    "mobilenet": Part(
        _cases("mobilenet", *_STEPS), partial(eager, name="torchvision:mobilenet_v3_large")
    ),
    "compiled-models": Part(_cases("compiled-models", ("training", "nchw", _BATCH)), compiled),
    "norms": Part(
        _cases(
            "norms",
            ("training", "channels_last", _DIGITS),
            ("inference", "channels_last", _DIGITS),
        ),
        partial(every_norm, name=SMALL_MODEL, classes=10),
    ),
    "norms-resnet50": Part(
        _cases(
            "norms-resnet50",
            ("training", "channels_last", _BATCH),
            ("inference", "channels_last", _ONE),
        ),
        partial(every_norm, name=_RESNET50, classes=1000),
    ),
}
"""Parts by name."""
