"""The five phases alone, in a CUDA graph, against a copy of the same map; and what was tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch

from rbnorm.kernels import active
from rbnorm.kernels.phases import table_dtype
from tools.gpu_report.clock import captured, in_turn, rotation
from tools.gpu_report.options import DTYPES, Options, Row
from tools.gpu_report.subjects import Case, random

NAME, SECONDS, WORKERS = "phases", 60, 1
PASSES = {"mean": 1, "moments": 1, "affine": 2, "grad_moments": 2, "grad_affine": 3}


def cases(options: Options) -> list[Case]:
    """Large maps of both layouts, and small ones."""
    some = [(32, 256, 56, 56), (32, 2048, 7, 7)]
    many = [(128, 256, 56, 56), *some, (32, 64, 112, 112), (32, 1024, 14, 14), (128, 16, 32, 32)]
    shapes = options.choose([(2, 3, 4, 5)], some, many)
    return [
        Case("training", d, la, s)
        for s, d, la in product(shapes, ("bfloat16", "float32"), ("channels_last", "contiguous"))
    ]


def phases(dy: Any, x: Any) -> dict[str, Callable[[], Any]]:
    """A call of each phase."""
    ops, wide = active(x.device.type).phases, table_dtype(x.dtype)
    m, a, b = torch.randn(3, *x.shape[:2], device=x.device, dtype=wide).unbind()
    p = torch.randn(x.shape[1], device=x.device, dtype=wide)
    return {
        "mean": lambda: ops.mean(x),
        "moments": lambda: ops.moments(x),
        "affine": lambda: ops.affine(x, m, a, b, None, 0, 0.0),
        "grad_moments": lambda: ops.grad_moments(dy, x, m, None, None, None, 0, 0.0),
        "grad_affine": lambda: ops.grad_affine(dy, x, m, a, None, p, b, None, 0, 0.0, True, False),
    }


def run(case: Case, options: Options) -> Iterator[Row]:
    """Time of a call, and its share of what a copy moves in that time."""
    count = rotation(3 * case.nbytes, options)
    inputs = [random(case, options, i) for i in range(2 * count)]
    sets = [phases(*pair) for pair in zip(inputs[::2], inputs[1::2], strict=True)]
    calls: dict[str, list[Any]] = {name: [one[name] for one in sets] for name in PASSES}
    calls["copy"] = [x.clone for x in inputs[1::2]]
    for each in calls.values():
        each[0]()
    if options.cuda:
        calls = {name: [captured(each)] for name, each in calls.items()}
    timed = in_turn(calls, options)
    nbytes = torch.Size(case.shape).numel() * DTYPES[case.dtype].itemsize
    for name, us in timed.items():
        us /= count  # noqa: PLW2901
        speed = PASSES.get(name, 2) * nbytes / us / 1e3
        yield {**case.fields, "subject": name, "us": us, "gb_per_s": speed}
