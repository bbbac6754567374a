"""The ops against the literal definition in float64: few shapes, every dtype, both layouts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from tools.gpu_report.options import Options, Row

NAME, SECONDS, WORKERS = "correctness", 60, 8
SHAPES = [
    (8, 64, 14, 14),
    (4, 3, 33, 65),  # nothing is aligned
    (3, 256, 7, 7),
    (2, 5, 200, 301),  # positions in chunks
    (64, 32),  # a single position
    (1, 8, 4, 4),
    (300, 16, 3, 3),  # many instances
]
KINDS = [(True, "none", False), (True, "relu", True), (False, "none", False), (False, "silu", True)]


def cases(options: Options) -> list[tuple[Any, ...]]:
    """Shape, dtype, layout, training, activation, residual."""
    dtypes = options.choose(
        ["float32"], ["float32", "bfloat16"], ["float32", "bfloat16", "float16"]
    )
    chosen = options.choose(SHAPES[1:2], SHAPES, SHAPES)
    small = [(shape if options.effort != "smoke" else (2, 3, 4, 5)) for shape in chosen]
    return [
        (shape, dtype, layout, *kind)
        for kind, dtype, layout, shape in product(
            KINDS, dtypes, ("channels_last", "contiguous"), small
        )
    ]


def run(case: tuple[Any, ...], options: Options) -> Iterator[Row]:
    """Whether everything the ops give is within the tolerances of the tests."""
    from cases import Case  # noqa: PLC0415
    from fused import compare  # noqa: PLC0415

    from rbnorm.kernels import triton  # noqa: PLC0415

    shape, dtype, layout, training, activation, residual = case
    torch.use_deterministic_algorithms(True)  # what nobody writes is NaN, and nothing is tuned
    layer = Case(shape, getattr(torch, dtype), layout, training, {"eps": 1e-3}, seed=0)
    row = {"shape": "x".join(map(str, shape)), "dtype": dtype, "layout": layout}
    row |= {"training": training, "activation": activation, "residual": residual}
    try:
        compare(triton, layer, activation, residual, layout, device=options.device)
    except AssertionError as error:
        yield {**row, "right": False, "error": str(error)[:300]}
    else:
        yield {**row, "right": True}
