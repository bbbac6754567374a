"""The steps: the cases of each, and what one of them tells, row by row."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
from torch import nn

import rbnorm
from rbnorm_lab.bench import candidates
from rbnorm_lab.bench.candidates import Subject
from rbnorm_lab.bench.cases import BASELINE, Case
from rbnorm_lab.bench.measure import Effort, host_seconds, measure, seconds_of
from tools.gpu_report.counters import CASES, counters

Row = dict[str, Any]
TINY = (2, 3, 4, 5)
CALL = (2, 16, 8, 8)
"""A map of nearly nothing: what is timed is the host."""
# In order of worth: the sizes that most people train.
SHAPES = [(32, 256, 56, 56), (32, 512, 28, 28), (32, 2048, 7, 7), (128, 16, 32, 32)]
MORE = [(128, 256, 56, 56), (32, 64, 112, 112), (32, 64, 56, 56), (32, 128, 28, 28)]
KINDS = [("bfloat16", "channels_last"), ("float32", "nchw")]
KINDS += [("float32", "channels_last"), ("bfloat16", "nchw")]


@dataclass(frozen=True)
class Options:
    """How a step runs.

    Attributes:
        device: "cuda", or "cpu" to try the report itself under Triton's interpreter.
        effort: "smoke" tries everything at the least size, "short" takes a few shapes of the
            "full" report.
    """

    device: torch.device
    effort: str

    @property
    def cuda(self) -> bool:
        """Whether there is a device to wait for."""
        return self.device.type == "cuda"

    def choose(self, smoke: Any, short: Any, full: Any) -> Any:
        """One of three, by the effort."""
        return {"smoke": smoke, "short": short, "full": full}[self.effort]

    @property
    def rounds(self) -> Effort:
        """How often a case is timed."""
        return Effort(7) if self.cuda else Effort(1, calls=1)


def _told(case: Case, subject: str) -> Row:
    """The columns of a row, under the names that all reports have."""
    layout = "contiguous" if case.layout == "nchw" else case.layout
    row = {"mode": case.mode, "dtype": case.dtype, "layout": layout, "shape": case.size}
    return {**row, "subject": subject.replace("rbnorm", "rbn")}


def machine(case: str, options: Options) -> Iterator[Row]:
    """Versions, the card, and what a copy moves: the floor of everything."""
    if case == "versions":
        row = {"rbnorm": rbnorm.__version__, "torch": torch.__version__, "card": "none"}
        row |= {"triton": triton.__version__, "python": platform.python_version()}
        row |= {"compiler": shutil.which("g++"), "cudnn": torch.backends.cudnn.version()}
        if options.cuda:
            card = torch.cuda.get_device_properties(0)
            row |= {"card": card.name, "multiprocessors": card.multi_processor_count}
            row |= {
                "gib": round(card.total_memory / 2**30, 1),
                "cache_mib": card.L2_cache_size >> 20,
            }
        yield row
        return
    for mebibytes in (8, 32, 128, 1024) if options.cuda else (1,):
        source = torch.randn(mebibytes * 2**18, device=options.device)
        target = torch.empty_like(source)
        target.copy_(source)
        seconds = seconds_of([lambda: target.copy_(source)] * 20, options.device) / 20  # noqa: B023
        speed = 2 * source.nbytes / seconds / 1e9
        yield {"copy_mib": mebibytes, "us": seconds * 1e6, "gb_per_s": speed}


def comparisons(options: Options) -> list[tuple[Any, ...]]:
    """Training, activation, residual, dtype, layout and shape."""
    shapes = [
        (8, 64, 14, 14),
        (4, 3, 33, 65),  # nothing is aligned
        (3, 256, 7, 7),
        (2, 5, 200, 301),  # positions in chunks
        (64, 32),  # a single position
        (1, 8, 4, 4),
        (300, 16, 3, 3),  # many instances
    ]
    kinds = [(True, "none", False), (True, "relu", True), (False, "none", False)]
    dtypes = ["float32", "bfloat16", "float16"]
    return [
        (*kind, dtype, layout, shape)
        for kind, dtype, layout, shape in product(
            [*kinds, (False, "silu", True)],
            dtypes[: options.choose(1, 2, 3)],
            ("channels_last", "contiguous"),
            options.choose([TINY], shapes, shapes),
        )
    ]


def correctness(case: tuple[Any, ...], options: Options) -> Iterator[Row]:
    """Whether everything the ops give is within the tolerances of the tests."""
    from cases import Case as Layer  # noqa: PLC0415 - of the tests, whose folder a step adds
    from fused import compare  # noqa: PLC0415

    from rbnorm.kernels import triton as backend  # noqa: PLC0415

    training, activation, residual, dtype, layout, shape = case
    torch.use_deterministic_algorithms(True)  # what nobody writes is NaN, and nothing is tuned
    layer = Layer(shape, getattr(torch, dtype), layout, training, {"eps": 1e-3}, seed=0)
    row = {"shape": "x".join(map(str, shape)), "dtype": dtype, "layout": layout, "right": True}
    row |= {"training": training, "activation": activation, "residual": residual}
    device = options.device.type
    try:
        compare(backend, layer, activation, residual, layout, device=device)
    except AssertionError as error:
        row |= {"right": False, "error": str(error)[:300]}
    yield row


def suite(case: str, options: Options) -> Iterator[Row]:
    """The tests that need a device, as pytest runs them; ``step`` writes a row for each of them.

    This row is the sum. Without a device it is what such a run would collect.
    """
    workers = min(8, os.cpu_count() or 1) if find_spec("xdist") and options.cuda else 0
    command = [sys.executable, "-m", "pytest", case, "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tools.gpu_report.step", "-o", "addopts=", "-W", "default"]
    command += ["-n", str(workers)] if workers else []
    command += [] if options.cuda else ["--collect-only"]
    environment = {"RBNORM_FUZZ_EXAMPLES": str(options.choose(1, 8, 40)), **os.environ}
    found = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    print(found.stdout, found.stderr, flush=True)
    lines = found.stdout.strip().splitlines()
    yield {"test": "all", "outcome": lines[-1] if lines else "nothing", "status": found.returncode}


def timed(options: Options) -> list[Case]:
    """The cases of the layer."""
    shapes = options.choose([TINY], SHAPES, [*SHAPES, *MORE])
    modes = ("training", "inference")
    return [Case("layers", m, *kind, s) for kind, s, m in product(KINDS, shapes, modes)]


def calls(options: Options) -> list[Case]:
    """The cases of the launch overhead."""
    modes = ("inference", "training", "training forward")
    return [Case("overhead", mode, "float32", "nchw", CALL) for mode in modes]


def _ways(case: Case, options: Options) -> list[Subject]:
    """Every way to run the layer, but the copy; compiled ones where the host is timed."""
    ways = candidates.eager(case, options.device)
    if case.part == "overhead" and options.effort != "smoke":
        ways += candidates.compiled(case, options.device)[1:]
    return [way for way in ways if way.name not in ("copy", "rbnorm portable")]


def warm(case: Case, options: Options) -> Iterator[Row]:
    """Compile what is timed later, many processes at once; the compilers keep it on disk."""
    for way in _ways(case, options):
        with way.ready():
            way.call()
    yield {**_told(case, "all"), "warm": True}


def overhead(case: Case, options: Options) -> Iterator[Row]:
    """How long the host is busy with a call, while the device has room in its queue."""
    count, rounds = (60, 9) if options.cuda else (1, 1)
    for way in _ways(case, options):
        found = []
        with way.ready():
            for _ in range(rounds + 1):
                found.append(host_seconds([way.call] * count) / count)
                _wait(options)
        yield {**_told(case, way.name), "us": sorted(found[1:])[rounds // 2] * 1e6}


def _wait(options: Options) -> None:
    if options.cuda:
        torch.cuda.synchronize()


def layers(case: Case, options: Options) -> Iterator[Row]:
    """Eager calls, and the same as a CUDA graph: without the graph a small map shows the host."""
    eager = candidates.eager(case, options.device)
    for how in ("eager", "graph") if options.cuda else ("eager",):
        subjects = eager if how == "eager" else [_captured(subject) for subject in eager]
        for row in measure(case, subjects, options.device, options.rounds):
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


def model(case: str, options: Options) -> Iterator[Row]:
    """A training step of ResNet-50 in bfloat16 autocast, channels_last: time and peak memory."""
    torch.backends.cudnn.benchmark = True
    shape = (128, 3, 224, 224) if options.cuda else (2, 3, 8, 8)
    step = Case("model", "training", "bfloat16", "channels_last", shape)
    models = {BASELINE: _network(options), "rbn": rbnorm.convert_batchnorm(_network(options))}
    if options.effort != "short":
        literal = candidates.literally(rbnorm.convert_batchnorm(_network(options)))
        models["literal"] = literal
    backend = "inductor" if case == "compiled" else "torch"
    subjects = [
        candidates.network(name, network, backend, case=step, device=options.device)
        for name, network in models.items()
    ]
    for subject, row in zip(
        subjects, measure(step, subjects, options.device, options.rounds), strict=True
    ):
        _wait(options)
        busy = host_seconds([subject.call] * 2) / 2
        cost = {"us": row.median_s * 1e6, "host_us": busy * 1e6, "peak_mib": row.peak_bytes / 2**20}
        yield {"subject": subject.name, "how": case, **cost}


def _network(options: Options) -> nn.Module:
    torch.manual_seed(0)
    if options.cuda:
        import torchvision  # noqa: PLC0415 - where it is missing, this step alone fails

        return torchvision.models.resnet50()  # type: ignore[no-any-return]
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 1000))


class Step(NamedTuple):
    """Its cases; what one yields; the seconds it may take; how many processes share it."""

    cases: Callable[[Options], list[Any]]
    run: Callable[[Any, Options], Iterator[Row]]
    seconds: float
    workers: int = 1


STEPS = {
    "machine": Step(lambda _: ["versions", "copy"], machine, 40),
    "correctness": Step(comparisons, correctness, 60, 8),
    "warm": Step(lambda options: [*calls(options), *timed(options)], warm, 75, 8),
    "suite": Step(lambda _: ["tests/gpu"], suite, 200),
    "overhead": Step(calls, overhead, 40),
    "layers": Step(timed, layers, 150),
    "model": Step(lambda o: ["eager", *o.choose((), (), ("compiled",))], model, 90),
    "counters": Step(lambda _: [*CASES], counters, 60),
}
