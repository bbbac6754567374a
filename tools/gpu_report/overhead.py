"""Launch overhead: how long the host is busy with a call on a map of nearly nothing."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Iterator

import torch

from tools.gpu_report.clock import host
from tools.gpu_report.options import Options, Row
from tools.gpu_report.subjects import COMPILED, EAGER, Case, Way, random

NAME, SECONDS, WORKERS = "overhead", 40, 1
SHAPE = (2, 16, 8, 8)


def cases(options: Options) -> list[str]:
    """Every way; compiled ones last."""
    return list(ways(options))


def ways(options: Options) -> dict[str, Way]:
    """What is timed."""
    return EAGER | options.choose({}, COMPILED, COMPILED)


def run(case: str, options: Options) -> Iterator[Row]:
    """Evaluation, the forward pass of training, and forward with backward."""
    way = ways(options)[case]
    with way.ready():
        for mode in ("inference", "training"):
            size = Case(mode, "float32", "contiguous", SHAPE)
            x, dy = random(size, options, 0), random(size, options, 1)
            (call,) = way.calls(size, options, [(x.requires_grad_(mode == "training"), dy)])
            for _ in range(5 if options.cuda else 1):
                call()
            yield {"subject": case, "mode": mode, "us": host(call, options)}
            if mode == "training":
                function = call.args[0]
                forward = host(lambda: function(x), options)  # noqa: B023
                yield {"subject": case, "mode": "training forward", "us": forward}
            if case == "rbn":
                yield {"subject": case, "mode": mode, "profile": _profile(call, options)}


def _profile(call: object, options: Options) -> str:
    """Where Python spends the time of 200 calls."""
    assert callable(call)
    with cProfile.Profile() as profiler, torch.autograd.set_multithreading_enabled(False):
        for _ in range(200 if options.cuda else 2):
            call()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(22)
    return text.getvalue()
