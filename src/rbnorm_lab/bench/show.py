"""Rows as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rbnorm_lab.bench.cases import BASELINE, Row, cases
from rbnorm_lab.bench.goals import Outcome
from rbnorm_lab.bench.layers import PER_CALL


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """One table for every part, mode, dtype and layout: ratios of medians to BatchNorm's."""
    groups: dict[tuple[str, ...], list[dict[str, Row]]] = {}
    for by_candidate in cases(rows):
        row = by_candidate[BASELINE]
        groups.setdefault((row.part, row.mode, row.dtype, row.layout), []).append(by_candidate)
    for group, found in groups.items():
        title = f"{', '.join(group)}; threads: {found[0][BASELINE].threads}"
        if found[0][BASELINE].flops is None:
            yield _table(title, found)
        else:
            yield from (_costs(title, by_candidate) for by_candidate in found)


def _costs(title: str, by_candidate: dict[str, Row]) -> Table:
    """What a network costs with each candidate in it."""
    base = by_candidate[BASELINE]
    table = Table(title=f"{title}; input {base.size}", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("norm", no_wrap=True)
    numbers = ("parameters", "buffers", "MFLOP in products", "time", "/ batchnorm", "spread")
    for heading in (*numbers, "MB saved", "MB at most"):
        table.add_column(heading, justify="right")
    for name, row in by_candidate.items():
        table.add_row(
            name,
            f"{row.parameters:,}",
            f"{row.buffers:,}",
            f"{(row.flops or 0) / 1e6:,.1f}",
            _duration(row.median_s),
            f"{row.ratio_to_batchnorm:.2f}",
            f"{row.spread:.0%}",
            "" if row.saved_bytes is None else f"{row.saved_bytes / 1e6:.1f}",
            f"{row.peak_bytes / 1e6:.1f}",
        )
    return table


def _table(title: str, found: Sequence[dict[str, Row]]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", min_width=len(title) + 2)
    table.add_column("input", no_wrap=True)
    candidates = [name for name in found[0] if name != BASELINE]
    for heading in (BASELINE, *candidates, "spread"):
        table.add_column(heading, justify="right")
    for by_candidate in found:
        row = by_candidate[BASELINE]
        ratios = (f"{by_candidate[name].ratio_to_batchnorm:.2f}" for name in candidates)
        spread = max(r.spread for r in by_candidate.values())
        table.add_row(row.size, _duration(row.median_s), *ratios, f"{spread:.0%}")
    suite = [by_candidate for by_candidate in found if by_candidate[BASELINE].shape != PER_CALL]
    if len(suite) > 1:
        means = (geometric_mean(c[name].ratio_to_batchnorm for c in suite) for name in candidates)
        name = "geometric mean" if suite == found else f"geometric mean of first {len(suite)}"
        table.add_section()
        table.add_row(name, "1", *(f"{mean:.2f}" for mean in means), "", style="bold")
    return table


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def goals_table(outcomes: Sequence[Outcome]) -> Table:
    """Every goal: its limits, the geometric mean, the worst case, and whether it is reached."""
    table = Table(
        title="goals: ratios, geometric mean (and worst)", box=SIMPLE_HEAD, title_justify="left"
    )
    for heading in ("cost", "against", "goal", "mean", "worst", "worst case", "verdict"):
        justify: Literal["left", "right"] = "right" if heading in ("mean", "worst") else "left"
        words = heading in ("cost", "against", "worst case")
        table.add_column(heading, justify=justify, no_wrap=not words)
    for outcome in outcomes:
        goal, measured = outcome.goal, ("", "", "")
        if outcome.ratios:
            case = outcome.worst
            where = "" if len(outcome.ratios) == 1 else f"{case.size} {case.layout}"
            measured = f"{outcome.mean:.3f}", f"{outcome.ratios[case]:.3f}", where
        limit = "" if goal.limit is None else f"≤ {goal.limit:.2f}"
        limit += "" if goal.worst is None else f" ({goal.worst:.2f})"
        style = "bold" if outcome.verdict == "missed" else ""
        table.add_row(goal.what, goal.against, limit, *measured, outcome.verdict, style=style)
    return table
