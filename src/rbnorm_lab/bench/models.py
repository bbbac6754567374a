"""The parts that time a whole ResNet-50 or MobileNetV3-Large."""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import nn
from torch.nn import functional as F

import rbnorm
from rbnorm import RepresentativeBatchNorm2d
from rbnorm_lab.bench.candidates import BASELINE, LAYOUTS, Literal, Subject
from rbnorm_lab.bench.measure import Part
from rbnorm_lab.bench.rows import Case
from rbnorm_lab.models import build_model

_CLASSES: Final = 1000


_RESNET50: Final = "torchvision:resnet50"


def _batchnorm(name: str = _RESNET50) -> nn.Module:
    return build_model(name, "bn", classes=_CLASSES, channels=3, seed=0)


def _rbnorm(name: str = _RESNET50) -> nn.Module:
    return build_model(name, "rbn", classes=_CLASSES, channels=3, seed=0)


def _literal(name: str) -> nn.Module:
    """The model of RBN with the same state, computed formula by formula."""
    model = _rbnorm(name)
    for layer in model.modules():
        if isinstance(layer, RepresentativeBatchNorm2d):
            layer.__class__ = Literal
    return model


def eager(case: Case, device: torch.device, name: str = _RESNET50) -> list[Subject]:
    """The model with BatchNorm, with RBN, and with the literal definition."""
    make = partial(subject, case=case, device=device)
    return [
        make(BASELINE, _batchnorm(name), "torch"),
        make("rbnorm", _rbnorm(name), rbnorm.backends()[device.type].name),
        make("literal", _literal(name), "torch"),
    ]


def compiled(case: Case, device: torch.device) -> list[Subject]:
    """The model with BatchNorm, and what ``torch.compile`` makes of it and of the one with RBN."""
    torch.compiler.reset()
    make = partial(subject, case=case, device=device)
    return [
        make(BASELINE, _batchnorm(), "torch"),
        make("compiled batchnorm", _batchnorm(), "inductor"),
        make("compiled rbnorm", _rbnorm(), "inductor"),
    ]


def subject(
    name: str,
    model: nn.Module,
    backend: str,
    *,
    case: Case,
    device: torch.device,
    classes: int = _CLASSES,
) -> Subject:
    """Training is a step of SGD with momentum on images of noise."""
    layout = LAYOUTS[case.layout]
    model = model.to(device).to(memory_format=layout).train(case.training)
    torch.manual_seed(0)
    images = torch.randn(case.shape, device=device).contiguous(memory_format=layout)
    labels = torch.randint(classes, case.shape[:1], device=device)
    function = torch.compile(model, dynamic=False) if backend == "inductor" else model
    if not case.training:
        return Subject(name, backend, partial(function, images), model, grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        F.cross_entropy(function(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(name, backend, step, model, grad=True)


def _steps(part: str) -> tuple[Case, ...]:
    return tuple(Case(part, "training", "float32", layout, (16, 3, 224, 224)) for layout in LAYOUTS)


MODELS: Final = Part(
    (*_steps("models"), Case("models", "inference", "float32", "nchw", (1, 3, 224, 224))), eager
)
MOBILENET: Final = Part(_steps("mobilenet"), partial(eager, name="torchvision:mobilenet_v3_large"))
COMPILED_MODELS: Final = Part(
    (Case("compiled-models", "training", "float32", "nchw", (16, 3, 224, 224)),), compiled
)
