"""The parts that compare the cost of all norms in one network."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch.utils.flop_counter import FlopCounterMode

import rbnorm
from rbnorm_cli.names import NORMS
from rbnorm_lab.bench.candidates import BASELINE, Subject
from rbnorm_lab.bench.measure import Part
from rbnorm_lab.bench.models import subject
from rbnorm_lab.bench.rows import Case
from rbnorm_lab.models import build_model


def _subjects(model: str, classes: int, case: Case, device: torch.device) -> list[Subject]:
    """The network with every norm, counted."""
    return [_counted(_subject(norm, model, classes, case, device)) for norm in NORMS]


def _subject(norm: str, model: str, classes: int, case: Case, device: torch.device) -> Subject:
    network = build_model(model, norm, classes=classes, channels=case.shape[1], seed=0)
    return subject(
        BASELINE if norm == "bn" else norm,
        network,
        rbnorm.backends()[device.type].name if norm.startswith("rbn") else "torch",
        case=case,
        device=device,
        classes=classes,
    )


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


def _part(
    name: str, model: str, classes: int, training: tuple[int, ...], inference: tuple[int, ...]
) -> Part:
    shapes = {"training": training, "inference": inference}
    return Part(
        tuple(Case(name, mode, "float32", "channels_last", shapes[mode]) for mode in shapes),
        partial(_subjects, model, classes),
    )


SMALL_MODEL: Final = "cifar-resnet8"
_SMALL: Final = (32, 1, 28, 28)

NORM_COSTS: Final = {
    "norms": _part("norms", SMALL_MODEL, 10, _SMALL, _SMALL),
    "norms-resnet50": _part(
        "norms-resnet50", "torchvision:resnet50", 1000, (16, 3, 224, 224), (1, 3, 224, 224)
    ),
}
"""Parts by name: the small network of the studies, and a large one."""
