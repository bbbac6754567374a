"""The benchmark from arguments to files: measure part by part, write, show."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from rich.progress import track

from rbnorm.models.files import replace
from rbnorm_lab.bench.cases import Row
from rbnorm_lab.bench.measure import measure
from rbnorm_lab.bench.parts import PARTS
from rbnorm_lab.bench.rows import beside, here, load, save
from rbnorm_lab.bench.show import figure, tables
from rbnorm_lab.errors import UsageError
from rbnorm_lab.folders import make_folder
from rbnorm_lab.names import unknown
from rbnorm_lab.plots import picture
from rbnorm_lab.progress import terminal

FIGURE: Final = "bench"


def bench(parts: Sequence[str], repeats: int, device: str, out: Path) -> None:
    """Measure parts of the benchmark, then show and draw all that the folder has.

    A part's rows are written when it is done, in place of those it had before. Rows of another
    processor stay: those of this one go into a folder beside them, which has its name.

    Args:
        parts: Names in :data:`~rbnorm_lab.bench.parts.PARTS`.
        repeats: Timed rounds of a case; a slow case ends earlier, but not before 7.
        device: "cpu" or "cuda".
        out: Folder of the rows, the machine's description and the figure.

    Raises:
        UsageError: There is no such part or device, or the folder cannot be used.
    """
    odd = next((name for name in parts if name not in PARTS), None)
    if odd is not None or not parts:
        raise unknown("part", odd or "", tuple(PARTS))
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda needs a CUDA or ROCm device that PyTorch can use, and found none"
        )
    folder = beside(out, here(where))
    rows, machine = load(folder)
    make_folder(folder)
    for name in dict.fromkeys(parts):
        part, measured = PARTS[name], list[Row]()
        for case in track(part.cases, name, console=terminal(stderr=True)):
            measured += measure(case, part.subjects(case, where), where, repeats)
        rows = [row for row in rows if row.part != name] + measured
        machine = {**machine, name: here(where)}
        save(folder, rows, machine)
    _show(rows, folder)


def _show(rows: Sequence[Row], folder: Path) -> None:
    layers = [row for row in rows if row.part in ("layers", "compiled")]
    if layers:
        drawing = figure(layers)
        for suffix in ("svg", "png"):
            replace(folder / f"{FIGURE}.{suffix}", picture(drawing, suffix))
    console = terminal(width=None if sys.stdout.isatty() else 130)
    console.print(*tables(rows))
    console.print(f"Rows, machine and figure: {folder}", soft_wrap=True)
