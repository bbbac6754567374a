"""Whole networks: as they are trained, and with every norm in them."""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import nn

import rbnorm
from rbnorm_lab.bench.candidates import Subject, literally, network
from rbnorm_lab.bench.cases import BASELINE, Case
from rbnorm_lab.models import build_model
from rbnorm_lab.names import NORMS

SMALL_MODEL: Final = "cifar-resnet8"
RESNET50: Final = "torchvision:resnet50"


def networks(
    case: Case, device: torch.device, name: str, *, compiled: bool = False
) -> list[Subject]:
    """A network with BatchNorm, with RBN by the device's backend, and with the literal one.

    Args:
        case: The case.
        device: Where they run.
        name: Of the network.
        compiled: Instead BatchNorm, and what ``torch.compile`` makes of it and of RBN.
    """
    make = partial(network, case=case, device=device)
    bn, rbn, other = (
        _built(name, norm, case) for norm in ("bn", "rbn", "bn" if compiled else "rbn")
    )
    if compiled:
        torch.compiler.reset()
        return [
            make(BASELINE, bn, "torch"),
            make("compiled batchnorm", other, "inductor"),
            make("compiled rbnorm", rbn, "inductor"),
        ]
    return [
        make(BASELINE, bn, "torch"),
        make("rbnorm", rbn, rbnorm.backends()[device.type].name),
        make("literal", literally(other), "torch"),
    ]


def every_norm(case: Case, device: torch.device, name: str, classes: int) -> list[Subject]:
    """The network with every norm."""
    ours = rbnorm.backends()[device.type].name
    return [
        network(
            BASELINE if norm == "bn" else norm,
            _built(name, norm, case, classes),
            ours if norm.startswith("rbn") else "torch",
            case=case,
            device=device,
            classes=classes,
        )
        for norm in NORMS
    ]


def _built(name: str, norm: str, case: Case, classes: int = 1000) -> nn.Module:
    return build_model(name, norm, classes=classes, channels=case.shape[1], seed=0)
