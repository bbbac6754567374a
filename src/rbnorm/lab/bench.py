"""The cost of a layer next to BatchNorm and the literal definition: setup -> time -> rows."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from rbnorm import RepresentativeBatchNorm2d, reference
from rbnorm.files import replace
from rbnorm.lab.errors import UsageError

# ResNet-50's BatchNorm inputs at batch 32 and 1, CIFAR's at batch 128, and a map of 16 kB.
SHAPES = (
    (32, 64, 112, 112),
    (32, 256, 56, 56),
    (32, 512, 28, 28),
    (32, 1024, 14, 14),
    (32, 2048, 7, 7),
    (1, 256, 56, 56),
    (1, 2048, 7, 7),
    (128, 16, 32, 32),
    (128, 64, 8, 8),
    (1, 64, 8, 8),
)


class _Literal(RepresentativeBatchNorm2d):
    """The literal definition with the parameters of the layer; running statistics left out."""

    def forward(self, input: Tensor) -> Tensor:
        running = (self.running_mean, self.running_var)
        return reference.representative_batch_norm(
            input,
            self.weight,
            self.bias,
            self.center_weight,
            self.scale_weight,
            self.scale_bias,
            statistics=None if self.training else running,  # type: ignore[arg-type]
            eps=self.eps,
        )[0]


CANDIDATES: dict[str, Callable[[int], nn.Module]] = {
    "batchnorm": nn.BatchNorm2d,
    "rbnorm": RepresentativeBatchNorm2d,
    "literal": _Literal,
}


def _call(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    if layer.training:
        torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
    else:
        with torch.no_grad():
            layer(x)


def _time(layers: dict[str, nn.Module], x: Tensor, dy: Tensor, repeats: int) -> dict[str, Any]:
    """Seconds per call, the candidates in turn so that a busy moment meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for repeat in range(repeats + 2):
        for name, layer in layers.items():
            start = time.perf_counter()
            _call(layer, x, dy)
            if repeat >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def bench(repeats: int, out: Path | None, shapes: Sequence[tuple[int, ...]] = SHAPES) -> None:
    """Time every candidate, print a table of ratios, and write the rows to ``out``.

    Args:
        repeats: Timed calls of each candidate; their median counts.
        out: File for the rows, one JSON object a line, written whole or not at all.
        shapes: Input shapes (N, C, H, W).

    Raises:
        UsageError: ``repeats`` is below 1, or ``out`` cannot be written.
    """
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, not {repeats}")
    if out is not None and not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise UsageError(f"--out {out} cannot be written: {out.parent} is no writable folder")
    with Progress() as progress:
        measured = list(_rows(repeats, shapes, progress))
    Console().print(_table(measured))
    if out is not None:
        replace(out, "".join(json.dumps(row) + "\n" for row in measured).encode())


def _rows(
    repeats: int, shapes: Sequence[tuple[int, ...]], progress: Progress
) -> Iterator[dict[str, Any]]:
    """One row per mode, memory format, shape and candidate, with the ratio to BatchNorm."""
    formats = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
    task = progress.add_task("timing", total=2 * len(formats) * len(shapes))
    for training in (True, False):
        for layout, memory_format in formats.items():
            for shape in shapes:
                x, dy = (
                    torch.randn(shape).contiguous(memory_format=memory_format) for _ in range(2)
                )
                layers = {n: make(shape[1]).train(training) for n, make in CANDIDATES.items()}
                seconds = _time(layers, x.requires_grad_(training), dy, repeats)
                median = {name: statistics.median(values) for name, values in seconds.items()}
                for name, values in seconds.items():
                    yield {
                        "mode": "training" if training else "inference",
                        "layout": layout,
                        "shape": list(shape),
                        "candidate": name,
                        "median_s": median[name],
                        "min_s": min(values),
                        "max_s": max(values),
                        "ratio_to_batchnorm": median[name] / median["batchnorm"],
                        "repeats": repeats,
                        "threads": torch.get_num_threads(),
                        "torch": torch.__version__,
                    }
                progress.advance(task)


def _table(measured: list[dict[str, Any]]) -> Table:
    """Ratios to BatchNorm with the geometric mean of each mode and layout."""
    result = Table("mode", "layout", "shape", "batchnorm", "rbnorm", "literal")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in measured:
        groups.setdefault((row["mode"], row["layout"]), []).append(row)
    for (mode, layout), group in groups.items():
        ratios = {
            name: [row["ratio_to_batchnorm"] for row in group if row["candidate"] == name]
            for name in CANDIDATES
        }
        times = [row["median_s"] * 1e3 for row in group if row["candidate"] == "batchnorm"]
        shapes = [row["shape"] for row in group if row["candidate"] == "batchnorm"]
        for i, shape in enumerate(shapes):
            size = "x".join(map(str, shape))
            ours, literal = ratios["rbnorm"][i], ratios["literal"][i]
            result.add_row(
                mode, layout, size, f"{times[i]:.3f} ms", f"{ours:.2f}", f"{literal:.2f}"
            )
        means = [f"{statistics.geometric_mean(ratios[n]):.2f}" for n in ("rbnorm", "literal")]
        result.add_row(mode, layout, "geometric mean", "1", *means, style="bold", end_section=True)
    return result
