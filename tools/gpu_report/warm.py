"""Compile what is timed later, many processes at once; the compilers keep it on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from tools.gpu_report import layers, overhead, phases
from tools.gpu_report.options import Options, Row
from tools.gpu_report.subjects import Case, random

NAME, SECONDS, WORKERS = "warm", 75, 8


def cases(options: Options) -> list[Case]:
    """Those of the launch overhead, of the layers, and of the phases."""
    small = [Case(m, "float32", "contiguous", overhead.SHAPE) for m in ("training", "inference")]
    return list(dict.fromkeys([*small, *layers.cases(options), *phases.cases(options)]))


def run(case: Case, options: Options) -> Iterator[Row]:
    """Call everything once."""
    start = time.perf_counter()
    x, dy = random(case, options, 0), random(case, options, 1)
    for call in phases.phases(dy, x).values():
        call()
    x.requires_grad_(case.mode == "training")
    ways = layers.ways(case, options)
    if case.shape == overhead.SHAPE:
        ways |= overhead.ways(options)
    for way in ways.values():
        torch.compiler.reset()
        with way.ready():
            way.calls(case, options, [(x, dy)])[0]()
    yield {**case.fields, "seconds": round(time.perf_counter() - start, 1)}
