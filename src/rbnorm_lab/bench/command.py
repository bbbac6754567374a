"""The benchmark from arguments to files: measure part by part, write, show."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from rich.progress import track

from rbnorm.models.files import replace
from rbnorm_lab.bench import figure, show
from rbnorm_lab.bench.cases import Row
from rbnorm_lab.bench.exported import EXPORTED
from rbnorm_lab.bench.goals import outcomes
from rbnorm_lab.bench.layers import LAYER_PARTS
from rbnorm_lab.bench.measure import Effort, Part, measure
from rbnorm_lab.bench.networks import NETWORK_PARTS
from rbnorm_lab.bench.rows import beside, here, load, save
from rbnorm_lab.errors import UsageError, at_least
from rbnorm_lab.folders import check_folder, make_folder
from rbnorm_lab.plots import picture
from rbnorm_lab.progress import terminal

PARTS: Final = {**LAYER_PARTS, **NETWORK_PARTS, **EXPORTED}
FIGURE: Final = "bench"


def bench(parts: Sequence[str], repeats: int, device: str, out: Path) -> None:
    """Measure parts of the benchmark, then show and draw all that the folder has.

    The arguments and errors are those of :func:`measure_parts`. Rows of another processor stay:
    those of this one go into a folder beside them, which has its name.
    """
    _check(parts, repeats, device)
    check_folder(out)
    folder = beside(out, here(torch.device(device)))
    _show(measure_parts(parts, repeats, device, folder), folder)


def measure_parts(parts: Sequence[str], repeats: int, device: str, out: Path) -> list[Row]:
    """Measure parts of the benchmark and keep their rows.

    A part's rows are written when it is done, in place of those it had before.

    Args:
        parts: Names in :data:`PARTS`.
        repeats: Timed rounds of a case; a slow case ends earlier, but not before 7.
        device: "cpu" or "cuda".
        out: Folder of the rows, the machine's description and the figure.

    Returns:
        All rows that ``out`` then has.

    Raises:
        UsageError: An argument is out of range, or the folder cannot be used.
    """
    _check(parts, repeats, device)
    check_folder(out)
    rows, machine = load(out)
    make_folder(out)
    where = torch.device(device)
    for name in dict.fromkeys(parts):
        measured = _run(name, PARTS[name], where, Effort(repeats))
        rows = [row for row in rows if row.part != name] + measured
        machine = {**machine, name: here(where)}
        save(out, rows, machine)
    return rows


def _check(parts: Sequence[str], repeats: int, device: str) -> None:
    unknown = next((name for name in parts if name not in PARTS), None)
    if unknown is not None or not parts:
        given = "no part" if unknown is None else f"unknown part {unknown!r}"
        raise UsageError(f"{given}: choose from {', '.join(PARTS)}")
    at_least(1, repeats=repeats)
    if device not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}: choose from cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda needs a CUDA or ROCm device that PyTorch can use, and found none"
        )


def _run(name: str, part: Part, device: torch.device, effort: Effort) -> list[Row]:
    found: list[Row] = []
    for case in track(part.cases, name, console=terminal(stderr=True)):
        found += measure(case, part.subjects(case, device), device, effort)
    return found


def _show(rows: Sequence[Row], out: Path) -> None:
    layers = [row for row in rows if row.part in ("layers", "compiled")]
    if layers:
        drawing = figure.draw(layers)
        for suffix in ("svg", "png"):
            replace(out / f"{FIGURE}.{suffix}", picture(drawing, suffix))
    console = terminal(width=None if sys.stdout.isatty() else 130)
    for table in show.tables(rows):
        console.print(table)
    console.print(show.goals_table(outcomes(rows)))
    console.print(f"Rows, machine and figure: {out}", soft_wrap=True)
