"""Rows of the layers as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

from rbnorm_lab.bench.candidates import NATIVE
from rbnorm_lab.bench.cases import BASELINE, Row
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


def draw(rows: Sequence[Row]) -> Figure:
    """Ratio to BatchNorm of every candidate by shape, a panel for each mode, dtype and layout.

    Args:
        rows: Rows of layers, at least one; those of compiled layers join the same panels.
    """
    modes = [*dict.fromkeys(row.mode for row in rows)]
    columns = [*dict.fromkeys((row.dtype, row.layout) for row in rows)]
    sizes = [*dict.fromkeys(row.size for row in rows)]
    figure = Figure(
        figsize=(2 + 2.4 * len(columns), 1.6 + len(modes) * (0.8 + 0.17 * len(sizes))),
        layout="constrained",
    )
    panels = figure.subplots(len(modes), len(columns), squeeze=False, sharex=True, sharey=True)
    for mode, line in zip(modes, panels, strict=True):
        for column, axes in zip(columns, line, strict=True):
            chosen = [r for r in rows if r.mode == mode and (r.dtype, r.layout) == column]
            _panel(axes, chosen, sizes)
            axes.set_title(", ".join((mode, *column)), fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("time / BatchNorm's")
    panels[0, 0].invert_yaxis()
    handles = {
        label: handle
        for axes in panels.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    return figure


def _panel(axes: Axes, rows: Sequence[Row], sizes: Sequence[str]) -> None:
    for name in dict.fromkeys(row.candidate for row in rows if row.candidate != BASELINE):
        color, marker = _STYLES[name.removeprefix("compiled ")]
        chosen = [row for row in rows if row.candidate == name]
        axes.plot(
            [row.ratio_to_batchnorm for row in chosen],
            [sizes.index(row.size) for row in chosen],
            marker,
            color=color,
            markersize=4.5,
            markerfacecolor="none" if name.startswith("compiled") else color,
            label=name,
        )
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(sizes)), sizes, fontsize=7)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
