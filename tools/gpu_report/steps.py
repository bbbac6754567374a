"""The steps: the cases of each, and what one of them tells, row by row.

``python -m tools.gpu_report.steps NAME cuda`` is one of them in a process of its own.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
import triton

import rbnorm
from rbnorm_lab.bench import candidates
from rbnorm_lab.bench.candidates import Subject
from rbnorm_lab.bench.cases import Case
from rbnorm_lab.bench.measure import host_seconds, measure, seconds_of
from tools.gpu_report import Row, append
from tools.gpu_report.counters import CASES, counters

TINY = (2, 3, 4, 5)
CALL = (2, 16, 8, 8)
"""A map of nearly nothing: what is timed is the host."""
# In order of worth: the sizes that most people train.
SHAPES = [(32, 256, 56, 56), (32, 512, 28, 28), (32, 2048, 7, 7), (128, 16, 32, 32)]
SHAPES += [(128, 256, 56, 56), (32, 64, 112, 112), (32, 64, 56, 56), (32, 128, 28, 28)]
KINDS = [("bfloat16", "channels_last"), ("float32", "nchw")]
KINDS += [("float32", "channels_last"), ("bfloat16", "nchw")]


def _told(case: Case, subject: str) -> Row:
    """The columns of a row, under the names that all reports have."""
    layout = "contiguous" if case.layout == "nchw" else case.layout
    row = {"mode": case.mode, "dtype": case.dtype, "layout": layout, "shape": case.size}
    return {**row, "subject": subject.replace("rbnorm", "rbn")}


def machine(case: str, device: torch.device) -> Iterator[Row]:
    """Versions, the card, and what a copy moves: the floor of everything."""
    cuda = device.type == "cuda"
    if case == "versions":
        row = {"rbnorm": rbnorm.__version__, "torch": torch.__version__, "card": "none"}
        row |= {"triton": triton.__version__, "python": platform.python_version()}
        if cuda:
            card = torch.cuda.get_device_properties(0)
            row |= {"card": card.name, "multiprocessors": card.multi_processor_count}
            row |= {"cudnn": torch.backends.cudnn.version(), "cache_mib": card.L2_cache_size >> 20}
        yield row
        return
    for mebibytes in (8, 32, 128, 1024) if cuda else (1,):
        source = torch.randn(mebibytes * 2**18, device=device)
        copy = partial(torch.empty_like(source).copy_, source)
        copy()
        seconds = seconds_of([copy] * 20, device) / 20
        speed = 2 * source.nbytes / seconds / 1e9
        yield {"copy_mib": mebibytes, "us": seconds * 1e6, "gb_per_s": speed}


def timed(cuda: bool) -> list[Case]:
    """The cases of the layer."""
    found = product(KINDS, SHAPES if cuda else [TINY], ("training", "inference"))
    return [Case("layers", mode, *kind, shape) for kind, shape, mode in found]


def calls(cuda: bool) -> list[Case]:
    """The cases of the launch overhead."""
    modes = ("inference", "training", "training forward")
    return [Case("overhead", mode, "float32", "nchw", CALL) for mode in modes]


def _ways(case: Case, device: torch.device) -> list[Subject]:
    """Every way to run the layer, but the copy; compiled ones where the host is timed."""
    ways = candidates.eager(case, device)
    if case.part == "overhead" and device.type == "cuda":
        ways += candidates.compiled(case, device)[1:]
    return [way for way in ways if way.name not in ("copy", "rbnorm portable")]


def warm(case: Case, device: torch.device) -> Iterator[Row]:
    """Compile what is timed later, many processes at once; the compilers keep it on disk."""
    for way in _ways(case, device):
        with way.ready() as call:
            call()
    yield {**_told(case, "all"), "warm": True}


def overhead(case: Case, device: torch.device) -> Iterator[Row]:
    """How long the host is busy with a call, while the device has room in its queue."""
    count, rounds = (60, 9) if device.type == "cuda" else (1, 1)
    for way in _ways(case, device):
        found = []
        with way.ready() as call:
            for _ in range(rounds + 1):
                found.append(host_seconds([call] * count) / count)
                _wait(device)
        yield {**_told(case, way.name), "us": sorted(found[1:])[rounds // 2] * 1e6}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _measured(case: Case, subjects: list[Subject], device: torch.device) -> list[Any]:
    effort = () if device.type == "cuda" else (1, 1)
    return measure(case, subjects, device, *effort)


def layers(case: Case, device: torch.device) -> Iterator[Row]:
    """Eager calls, and the same as a CUDA graph: without the graph a small map shows the host."""
    eager = candidates.eager(case, device)
    for how in ("eager", "graph") if device.type == "cuda" else ("eager",):
        subjects = eager if how == "eager" else [_captured(subject) for subject in eager]
        for row in _measured(case, subjects, device):
            us = row.median_s * 1e6 / (len(eager[0].calls) if how == "graph" else 1)
            passes = 8 if case.training and row.candidate != "copy" else 2
            speed = passes * case.nbytes / us / 1e3
            yield {**_told(case, row.candidate), "how": how, "us": us, "gb_per_s": speed}


def _captured(subject: Subject) -> Subject:
    """All calls of a subject as one graph; what they return stays alive, so no output is shared."""
    with subject.ready():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in (*subject.calls, *subject.calls):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [call() for call in subject.calls]

    def replay() -> Any:
        graph.replay()
        return kept

    return replace(subject, calls=(replay,))


def model(case: str, device: torch.device) -> Iterator[Row]:
    """A training step of ResNet-50 in bfloat16 autocast, channels_last: time and peak memory."""
    # where torchvision is missing, this step alone fails
    from rbnorm_lab.bench.networks import RESNET50, SMALL_MODEL, networks  # noqa: PLC0415

    torch.backends.cudnn.benchmark = True
    cuda = device.type == "cuda"
    shape = (128, 3, 224, 224) if cuda else (2, 3, 8, 8)
    step = Case("model", "training", "bfloat16", "channels_last", shape)
    name = RESNET50 if cuda else SMALL_MODEL
    # the interpreter would take minutes for a network
    with nullcontext() if cuda else rbnorm.use_backend("portable"):
        subjects = networks(step, device, name, compiled=case == "compiled")
        for subject, row in zip(subjects, _measured(step, subjects, device), strict=True):
            _wait(device)
            busy = host_seconds([subject.calls[0]] * 2) / 2
            cost = {"us": row.median_s * 1e6, "host_us": busy * 1e6}
            cost["peak_mib"] = row.peak_bytes / 2**20
            yield {"subject": subject.name.replace("rbnorm", "rbn"), "how": case, **cost}


class Step(NamedTuple):
    """Its cases, with a GPU and without; what one yields; the seconds it may take; its workers."""

    cases: Callable[[bool], list[Any]]
    run: Callable[[Any, torch.device], Iterator[Row]]
    seconds: float
    workers: int = 1


# Together they take seven minutes at most.
STEPS = {
    "machine": Step(lambda _: ["versions", "copy"], machine, 30),
    "warm": Step(lambda cuda: [*calls(cuda), *timed(cuda)], warm, 90, 8),
    "overhead": Step(calls, overhead, 40),
    "layers": Step(timed, layers, 110),
    "model": Step(lambda cuda: ["eager", "compiled"] if cuda else ["eager"], model, 80),
    "counters": Step(lambda _: [*CASES], counters, 40),
}


def _one(case: Any, name: str, device: torch.device) -> int:
    """Run one case: if it fails, its row says so, and the others go on."""
    try:
        for row in STEPS[name].run(case, device):
            append(name, row)
    except Exception as error:
        traceback.print_exc()
        append(name, {"case": str(case), "failed": f"{type(error).__name__}: {error}"[:600]})
        return 1
    return 0


def main(name: str, where: str) -> int:
    """Run a step; the status is how many of its cases failed."""
    step, device = STEPS[name], torch.device(where)
    cuda, run = where == "cuda", partial(_one, name=name, device=device)
    cases = step.cases(cuda)
    if cuda and step.workers > 1:
        workers = min(step.workers, os.cpu_count() or 1)
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            return min(sum(pool.map(run, cases)), 100)
    if not cuda:  # Triton's interpreter serves the CPU in place of what does
        torch.set_num_threads(1)
        backends = importlib.import_module("rbnorm.kernels.backends")
        backends._compiled["cpu"] = backends._compiled["cuda"]
    return min(sum(map(run, cases)), 100)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
