"""Rows as tables in the terminal, and those of the layers as a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean
from typing import Final

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from rbnorm_lab.bench.candidates import NATIVE
from rbnorm_lab.bench.cases import BASELINE, Row, cases
from rbnorm_lab.bench.parts import PER_CALL
from rbnorm_lab.plots import INK

# Colours of Okabe and Ito, and a marker each; a compiled candidate is hollow.
_STYLES: Final = {
    "rbnorm": ("#d55e00", "v"),
    "rbnorm portable": ("#e69f00", "s"),
    "literal": ("#cc79a7", "D"),
    "copy": ("#009e73", "^"),
    BASELINE: ("#0072b2", "o"),
    NATIVE: ("#0072b2", "P"),
}
_TICKS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """One table for every part, mode, dtype and layout: ratios of medians to BatchNorm's.

    Below them stands the geometric mean, and in brackets the worst.
    """
    groups: dict[tuple[str, ...], list[dict[str, Row]]] = {}
    for by_candidate in cases(rows):
        row = by_candidate[BASELINE]
        groups.setdefault((row.part, row.mode, row.dtype, row.layout), []).append(by_candidate)
    for group, found in groups.items():
        yield _ratios(f"{', '.join(group)}; threads: {found[0][BASELINE].threads}", found)


def _ratios(title: str, found: Sequence[dict[str, Row]]) -> Table:
    candidates = [name for name in found[0] if name != BASELINE]
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", min_width=len(title) + 2)
    table.add_column("input")
    for heading in (BASELINE, *candidates, "spread"):
        table.add_column(heading, justify="right", no_wrap=True)
    for by_candidate in found:
        row = by_candidate[BASELINE]
        ratios = (f"{by_candidate[name].ratio_to_batchnorm:.2f}" for name in candidates)
        spread = max(r.spread for r in by_candidate.values())
        table.add_row(row.size, _duration(row.median_s), *ratios, f"{spread:.0%}")
    suite = [by_candidate for by_candidate in found if by_candidate[BASELINE].shape != PER_CALL]
    if len(suite) > 1:
        own = [[c[name].ratio_to_batchnorm for c in suite] for name in candidates]
        means = (f"{geometric_mean(ratios):.2f} ({max(ratios):.2f})" for ratios in own)
        name = "mean (worst)" if suite == found else f"mean of first {len(suite)} (worst)"
        table.add_section()
        table.add_row(name, "1", *means, "", style="bold")
    return table


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def figure(rows: Sequence[Row]) -> Figure:
    """Ratio to BatchNorm of every candidate by shape, a panel for each mode, dtype and layout.

    Args:
        rows: Rows of layers, at least one; those of compiled layers join the same panels.
    """
    modes = [*dict.fromkeys(row.mode for row in rows)]
    columns = [*dict.fromkeys((row.dtype, row.layout) for row in rows)]
    sizes = [*dict.fromkeys(row.size for row in rows)]
    drawing = Figure(
        figsize=(2 + 2.4 * len(columns), 1.6 + len(modes) * (0.8 + 0.17 * len(sizes))),
        layout="constrained",
    )
    panels = drawing.subplots(len(modes), len(columns), squeeze=False, sharex=True, sharey=True)
    handles = {}
    for axes, (mode, column) in zip(
        panels.flat, ((m, c) for m in modes for c in columns), strict=True
    ):
        chosen = [r for r in rows if (r.mode, (r.dtype, r.layout)) == (mode, column)]
        for name in dict.fromkeys(row.candidate for row in chosen if row.candidate != BASELINE):
            own = [row for row in chosen if row.candidate == name]
            color, marker = _STYLES[name.removeprefix("compiled ")]
            (handles[name],) = axes.plot(
                [row.ratio_to_batchnorm for row in own],
                [sizes.index(row.size) for row in own],
                marker,
                color=color,
                markersize=4.5,
                markerfacecolor="none" if name.startswith("compiled") else color,
                label=name,
            )
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_title(", ".join((mode, *column)), fontsize=9)
        axes.set_xscale("log")
        axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS], fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set_yticks(range(len(sizes)), sizes, fontsize=7)
        axes.grid(alpha=0.25)
    for axes in panels[-1]:
        axes.set_xlabel("time / BatchNorm's")
    panels[0, 0].invert_yaxis()
    drawing.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    return drawing
