"""What all figures are made of, drawn with matplotlib's object interface."""

import io
import re
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rbnorm_lab.statistics import Estimate

INK: Final = "#1b1b1b"  # nothing else has this colour: inside a page it becomes the text's

BASELINE_MARK: Final = ("#0072b2", "s")
SUBJECT_MARK: Final = ("#d55e00", "o")
"""Two of the colours of Okabe and Ito; the markers say the same in grey print."""

NARROW: Final = 4.2
"""Inches of a figure for a phone: its letters are then about as large as the page's."""

_LETTERS: Final = 14
"""About so many letters of a legend are an inch wide."""
_LINE: Final = 8
"""What stands before a name in a legend is as wide as so many letters."""

Style = tuple[str, str, Any]
"""Colour, marker and dashes."""

# Colours of Okabe and Ito, which colour-blind readers can tell apart; the marker and the dashes say
# the same in grey print.
_STYLES: Final[dict[str, Style]] = {
    "bn": ("#0072b2", "o", "-"),
    "gn": ("#e69f00", "s", "--"),
    "ln": ("#009e73", "^", "-."),
    "in": ("#cc79a7", "D", ":"),
    "rbn": ("#d55e00", "v", "-"),
    "rbn-center": ("#56b4e9", "P", (0, (6, 1.5))),
    "rbn-scale": ("#8a8a8a", "X", (0, (3, 1, 1, 1))),
}
# For any other norm. As many markers as are no multiple of the colours give the most pairs.
_COLORS: Final = tuple(color for color, _, _ in _STYLES.values())
_MARKERS: Final = ("<", ">", "p", "*", "h", "d", "8", "H")
_DASHES: Final = ("--", "-.", ":", "-")
RC: Final[dict[Any, Any]] = {
    "font.size": 10.0,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8a8a8a",
    "grid.alpha": 0.25,
}


def svg(figure: Figure, name: str) -> str:
    """A figure as SVG to stand inside a page, its ink in the colour of the page's text.

    Args:
        figure: The figure.
        name: Keeps the identifiers of this figure apart from others on the page.
    """
    text = io.StringIO()
    with mpl.rc_context({**RC, "svg.hashsalt": name, "svg.id": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    # without a size of its own it takes the page's; the view box keeps its proportions
    return re.sub(r' (width|height)="[\d.]+pt"', "", drawing, count=2)


def panels_of(
    figure: Figure, rows: int, columns: int, *, narrow: bool, heights: Sequence[float] | None = None
) -> Any:
    """Panels in rows and columns, (rows, columns); in a narrow figure they stand below each other.

    Those of a row have one vertical scale.

    Args:
        figure: The figure.
        rows: Number of rows.
        columns: Number of columns.
        narrow: Whether the figure is.
        heights: Of the rows, relative.
    """
    ratios = [1.0] * rows if heights is None else list(heights)
    if narrow:
        stacked = [ratio for ratio in ratios for _ in range(columns)]
        axes = figure.subplots(rows * columns, 1, squeeze=False, height_ratios=stacked)
        axes = axes.reshape(rows, columns)
        for first, *others in axes:
            for other in others:
                other.sharey(first)
        return axes
    return figure.subplots(rows, columns, squeeze=False, sharey="row", height_ratios=ratios)


def interval(
    axes: Axes,
    mean: float,
    y: float,
    ends: tuple[float, float] | None,
    mark: tuple[str, str],
) -> None:
    """A mean as a mark, and its interval as a bar beside it where there is one."""
    color, marker = mark
    low, high = ends or (mean, mean)
    axes.errorbar(
        mean,
        y,
        xerr=[[mean - low], [high - mean]],
        color=color,
        marker=marker,
        markeredgecolor=INK,
        markeredgewidth=0.6,
        capsize=3.5,
        linewidth=1.7,
    )


def percent(axes: Axes, found: Estimate, y: float, mark: tuple[str, str]) -> None:
    """A share and its interval, in percent."""
    low, high = found.interval or (found.mean,) * 2
    interval(axes, 100 * found.mean, y, (100 * low, 100 * high), mark)


def seeds(axes: Axes, values: Sequence[float], y: float, mark: tuple[str, str]) -> None:
    """Every seed as a small mark."""
    color, marker = mark
    axes.scatter(values, np.full(len(values), y), s=13, color=color, marker=marker, alpha=0.5, lw=0)


def styles_of(norms: Iterable[str]) -> dict[str, Style]:
    """Colour, marker and dashes of norms that stand together; no two have both the same.

    A norm without a style of its own takes a colour that is still free, while there is one.
    """
    distinct = dict.fromkeys(norms)
    taken = {_STYLES[norm][0] for norm in distinct if norm in _STYLES}
    colors = sorted(_COLORS, key=taken.__contains__)
    others = zip(cycle(colors), cycle(_MARKERS), cycle(_DASHES), strict=False)
    return {norm: _STYLES.get(norm) or next(others) for norm in distinct}


def size_of(height: float, rows: int, columns: int, *, narrow: bool) -> tuple[float, float]:
    """Of a figure with panels of this height, in inches."""
    return (NARROW, height * rows * columns) if narrow else (4.2 * max(columns, 2), height * rows)


def legend(figure: Figure, axes: Axes, *, narrow: bool) -> None:
    """The names of what stands in all panels, below them, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    fitting = int(_LETTERS * figure.get_figwidth()) // (_LINE + max(map(len, labels)))
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(fitting, 2 if narrow else 4)),
        frameon=False,
        handlelength=3,
    )


def picture(figure: Figure, suffix: str) -> bytes:
    """A figure as the content of a file of its own, on white."""
    content = io.BytesIO()
    with mpl.rc_context({**RC, "svg.hashsalt": "rbnorm"}):
        metadata = {"Date": None} if suffix == "svg" else {}
        figure.savefig(content, format=suffix, dpi=160, facecolor="white", metadata=metadata)
    return content.getvalue()
