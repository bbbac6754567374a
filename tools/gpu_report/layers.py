"""The layer: every way to run it, at the sizes of ResNet-50 and of a CIFAR ResNet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from tools.gpu_report.clock import captured, in_turn, rotation
from tools.gpu_report.options import Options, Row
from tools.gpu_report.subjects import COMPILED, EAGER, Case, Way, random

NAME, SECONDS, WORKERS = "layers", 150, 1
SMALL = [(32, 2048, 7, 7), (128, 16, 32, 32)]
SHORT = [(32, 256, 56, 56), (32, 512, 28, 28), *SMALL]
FULL = [
    (128, 256, 56, 56),
    (32, 64, 112, 112),
    (32, 64, 56, 56),
    (32, 256, 56, 56),
    (32, 128, 28, 28),
    (32, 512, 28, 28),
    (32, 1024, 14, 14),
    *SMALL,
    (128, 64, 8, 8),
]


def cases(options: Options) -> list[Case]:
    """In order of worth: the sizes that most people train at first."""
    shapes = options.choose([(2, 3, 4, 5)], SHORT, FULL)
    kinds = [("bfloat16", "channels_last"), ("float32", "contiguous")]
    kinds += [("float32", "channels_last"), ("bfloat16", "contiguous")]
    modes = ("training", "inference")
    return [Case(m, d, la, s) for (d, la), s, m in product(kinds, shapes, modes)]


def _is_compiled(case: Case, options: Options) -> bool:
    """Whether the compiler's versions are timed: compiling takes seconds a case."""
    if options.effort == "full":
        return case.shape in SHORT and (case.dtype == "float32") == (case.layout == "contiguous")
    return options.effort == "short" and case.dtype == "bfloat16" and case.shape == SHORT[0]


def ways(case: Case, options: Options) -> dict[str, Way]:
    """The eager ones, and the compiled ones where they are timed."""
    return EAGER | (COMPILED if _is_compiled(case, options) else {})


def run(case: Case, options: Options) -> Iterator[Row]:
    """Eager calls, and the same as a CUDA graph: without the graph a small map shows the host."""
    count = rotation(4 * case.nbytes, options)
    training = case.mode == "training"
    inputs = [
        (random(case, options, 2 * i).requires_grad_(training), random(case, options, 2 * i + 1))
        for i in range(count)
    ]
    torch.compiler.reset()
    timed_ways = ways(case, options)
    eager = {"copy": [x.detach().clone for x, _ in inputs]}
    for name, way in timed_ways.items():
        eager[name] = way.calls(case, options, inputs)
        with way.ready():
            for call in eager[name]:
                call()
    native = {name: calls for name, calls in eager.items() if name == "batchnorm native"}
    others = {name: calls for name, calls in eager.items() if name not in native}
    found = {("eager", name): us for name, us in in_turn(others, options).items()}
    with EAGER["batchnorm native"].ready():
        found |= {("eager", name): us for name, us in in_turn(native, options).items()}
    if options.cuda:
        graphs = {}
        for name, calls in eager.items():
            with timed_ways.get(name, EAGER["rbn"]).ready():
                graphs[name] = [captured(calls)]
        timed = in_turn(graphs, options)
        found |= {("graph", name): us / count for name, us in timed.items()}
    for (how, name), us in found.items():
        moved = 2 if name == "copy" else case.passes
        yield {
            **case.fields,
            "subject": name,
            "how": how,
            "us": us,
            "gb_per_s": moved * case.nbytes / us / 1e3,
        }
