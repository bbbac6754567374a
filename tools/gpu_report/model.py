"""A training step of ResNet-50 in bfloat16 autocast, channels_last: time and peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import rbnorm
from rbnorm import RepresentativeBatchNorm2d
from rbnorm_lab.bench.candidates import Literal
from tools.gpu_report.clock import host, in_turn
from tools.gpu_report.options import Options, Row

NAME, SECONDS, WORKERS = "model", 90, 1


def cases(options: Options) -> list[str]:
    """Eager before compiled, which takes a minute to compile."""
    return ["eager", *options.choose((), (), ("compiled",))]


def _literal(model: nn.Module) -> nn.Module:
    model = rbnorm.convert_batchnorm(model)
    for layer in model.modules():
        if isinstance(layer, RepresentativeBatchNorm2d):
            layer.__class__ = Literal
    return model


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "batchnorm": lambda model: model,
    "rbn": rbnorm.convert_batchnorm,
    "literal": _literal,
}


def _smallest() -> nn.Module:
    """What the interpreter can bear."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 1000))


def _step(way: str, compiled: bool, options: Options) -> Callable[[], None]:
    torch.manual_seed(0)
    batch, side = (128, 224) if options.cuda else (2, 8)
    model = WAYS[way](torchvision.models.resnet50() if options.cuda else _smallest())
    model = model.to(options.device)
    model = model.to(memory_format=torch.channels_last).train()
    images = torch.randn(batch, 3, side, side, device=options.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=options.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    function: Any = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(options.device, torch.bfloat16):
            loss = F.cross_entropy(function(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def run(case: str, options: Options) -> Iterator[Row]:
    """The steps of the models take turns."""
    torch.backends.cudnn.benchmark = True
    steps, peaks = {}, {}
    for way in WAYS:
        if way == "literal" and options.effort == "short":
            continue
        steps[way] = _step(way, case == "compiled", options)
        for _ in range(3 if options.cuda else 1):
            steps[way]()
        if options.cuda:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            steps[way]()
            peaks[way] = (torch.cuda.max_memory_allocated() - before) / 2**20
    timed = in_turn({way: [step] for way, step in steps.items()}, options, 150)
    for way, us in timed.items():
        busy = host(steps[way], options, 2)
        yield {"subject": way, "how": case, "us": us, "host_us": busy, "peak_mib": peaks.get(way)}
