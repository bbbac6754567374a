"""Figures of records, drawn with matplotlib's object interface."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rbnorm_lab.analysis import BASELINE, Row, summarise
from rbnorm_lab.records import Record
from rbnorm_lab.statistics import Estimate

INK: Final = "#1b1b1b"  # nothing else has this colour: inside a page it becomes the text's

BASELINE_MARK: Final = ("#0072b2", "s")
SUBJECT_MARK: Final = ("#d55e00", "o")
OTHER_MARK: Final = ("#009e73", "^")
"""Three of the colours of Okabe and Ito; the markers say the same in grey print."""

NARROW: Final = 4.2
"""Inches of a figure for a phone: its letters are then about as large as the page's."""

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
    label: str | None = None,
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
        label=label,
    )


def percent(
    axes: Axes, found: Estimate, y: float, mark: tuple[str, str], label: str | None = None
) -> None:
    """A share and its interval, in percent."""
    low, high = found.interval or (found.mean,) * 2
    interval(axes, 100 * found.mean, y, (100 * low, 100 * high), mark, label)


def seeds(axes: Axes, values: Sequence[float], y: float, mark: tuple[str, str]) -> None:
    """Every seed as a small mark."""
    color, marker = mark
    axes.scatter(values, np.full(len(values), y), s=13, color=color, marker=marker, alpha=0.5, lw=0)


def _styles(norms: Iterable[str]) -> dict[str, Style]:
    """Colour, marker and dashes of norms that stand together; no two have both the same.

    A norm without a style of its own takes a colour that is still free, while there is one.
    """
    distinct = dict.fromkeys(norms)
    taken = {_STYLES[norm][0] for norm in distinct if norm in _STYLES}
    colors = sorted(_COLORS, key=taken.__contains__)
    others = zip(cycle(colors), cycle(_MARKERS), cycle(_DASHES), strict=False)
    return {norm: _STYLES.get(norm) or next(others) for norm in distinct}


def accuracy_figure(rows: Sequence[Row], *, narrow: bool = False) -> Figure:
    """Test accuracy by norm: mean, 95 % interval and every seed, one panel for every batch size."""
    sizes = _batch_sizes(row.batch_size for row in rows)
    styles = _styles(row.norm for row in rows)
    with mpl.rc_context(RC):
        figure = Figure(figsize=_size(3.4, 1, len(sizes), narrow=narrow), layout="constrained")
        panels = panels_of(figure, 1, len(sizes), narrow=narrow)[0]
        for axes, size in zip(panels, sizes, strict=True):
            _accuracy_panel(axes, [row for row in rows if row.batch_size == size], styles)
            axes.set_title(f"batch size {size}")
        for axes in panels if narrow else panels[:1]:
            axes.set_ylabel("test accuracy (%)")
    return figure


def _size(height: float, rows: int, columns: int, *, narrow: bool) -> tuple[float, float]:
    """Of a figure with panels of this height, in inches."""
    return (NARROW, height * rows * columns) if narrow else (4.2 * columns, height * rows)


def _accuracy_panel(axes: Axes, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    for x, row in enumerate(rows):
        color, marker, _ = styles[row.norm]
        values = 100 * np.asarray(row.accuracy.values)
        spread = 0.12 * np.linspace(-1, 1, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(x - 0.22 + spread, values, s=14, color=color, marker=marker, alpha=0.55, lw=0)
        mean = 100 * row.accuracy.mean
        low, high = (100 * v for v in row.accuracy.interval or (row.accuracy.mean,) * 2)
        axes.errorbar(
            x + 0.16,
            mean,
            [[mean - low], [min(high, 100) - mean]],
            color=color,
            marker=marker,
            markeredgecolor=INK,
            markeredgewidth=0.5,
            capsize=4,
            linewidth=1.6,
        )
    axes.set_xticks(range(len(rows)), [row.norm for row in rows], rotation=30, ha="right")
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="x")


def curves_figure(records: Sequence[Record], *, narrow: bool = False) -> Figure:
    """Test accuracy and loss after every epoch: mean over seeds, band from least to most."""
    sizes = _batch_sizes(record.config.batch_size for record in records)
    styles = _styles(record.config.norm for record in records)
    quantities = (("test_accuracy", "test accuracy (%)", 100), ("test_loss", "test loss", 1))
    with mpl.rc_context(RC):
        figure = Figure(figsize=_size(2.8, 2, len(sizes), narrow=narrow), layout="constrained")
        panels = panels_of(figure, 2, len(sizes), narrow=narrow)
        for row, (quantity, label, factor) in zip(panels, quantities, strict=True):
            for axes, size in zip(row, sizes, strict=True):
                chosen = [record for record in records if record.config.batch_size == size]
                _curves(axes, chosen, quantity, factor, styles)
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            for axes in row if narrow else row[:1]:
                axes.set_ylabel(label)
        for row in panels if narrow else panels[:1]:
            for axes, size in zip(row, sizes, strict=True):
                axes.set_title(f"batch size {size}")
        for axes in panels[0]:
            axes.tick_params(labelbottom=narrow)
        for axes in panels[1]:
            axes.set_xlabel("epoch")
        _legend(figure, panels[0, 0], narrow=narrow)
    return figure


def _curves(
    axes: Axes,
    records: Sequence[Record],
    quantity: str,
    factor: float,
    styles: Mapping[str, Style],
) -> None:
    for norm in dict.fromkeys(record.config.norm for record in records):
        color, marker, dashes = styles[norm]
        curves = factor * np.array(
            [
                [getattr(epoch, quantity) for epoch in record.epochs]
                for record in records
                if record.config.norm == norm
            ],
            dtype=float,
        )
        epochs = np.arange(1, curves.shape[1] + 1)
        axes.fill_between(epochs, curves.min(0), curves.max(0), color=color, alpha=0.12, lw=0)
        axes.plot(
            epochs, curves.mean(0), color=color, marker=marker, markersize=4, ls=dashes, label=norm
        )


def channel_figure(records: Sequence[Record], *, narrow: bool = False) -> Figure:
    """Standard deviation of the channel means, layer by layer: every seed thin, the mean thick.

    Shown are BatchNorm and RBN, or every norm in a study that has neither.
    """
    sizes = _batch_sizes(record.config.batch_size for record in records)
    styles = _styles(record.config.norm for record in records)
    norms = [norm for norm in (BASELINE, "rbn") if norm in styles] or list(styles)
    with mpl.rc_context(RC):
        figure = Figure(figsize=_size(3.9, 1, len(sizes), narrow=narrow), layout="constrained")
        panels = panels_of(figure, 1, len(sizes), narrow=narrow)[0]
        for axes, size in zip(panels, sizes, strict=True):
            for norm in norms:
                chosen = [record for record in records if _group(record) == (size, norm)]
                _layer_lines(axes, chosen, styles[norm])
            axes.set_title(f"batch size {size}")
            axes.set_xlabel("normalisation layer, input to output")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels if narrow else panels[:1]:
            axes.set_ylabel("std over channels of\nthe channels' mean output")
        panels[0].set_ylim(bottom=0)
        _legend(figure, panels[0], narrow=narrow)
    return figure


def _layer_lines(axes: Axes, records: Sequence[Record], style: Style) -> None:
    if not records:
        return
    norm = records[0].config.norm
    color, marker, dashes = style
    lines = np.array([list(record.channel_mean_std.values()) for record in records], dtype=float)
    layers = np.arange(1, lines.shape[1] + 1)
    line: dict[str, Any] = {"color": color, "ls": dashes}
    axes.plot(layers, lines.T, lw=0.8, alpha=0.35, **line)
    axes.plot(layers, lines.mean(0), marker=marker, markersize=5, lw=2, label=norm, **line)


def _legend(figure: Figure, axes: Axes, *, narrow: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2 if narrow else 4,
        frameon=False,
        handlelength=3,
    )


def _group(record: Record) -> tuple[int, str]:
    return record.config.batch_size, record.config.norm


def _batch_sizes(values: Iterable[int]) -> list[int]:
    return sorted(set(values), reverse=True)


def figures(records: Sequence[Record], *, narrow: bool = False) -> dict[str, Figure]:
    """The figures of a comparison by name, wide or for a phone."""
    return {
        "accuracy": accuracy_figure(summarise(records), narrow=narrow),
        "curves": curves_figure(records, narrow=narrow),
        "channel-means": channel_figure(records, narrow=narrow),
    }


def picture(figure: Figure, suffix: str) -> bytes:
    """A figure as the content of a file of its own, on white."""
    content = io.BytesIO()
    with mpl.rc_context({**RC, "svg.hashsalt": "rbnorm"}):
        metadata = {"Date": None} if suffix == "svg" else {}
        figure.savefig(content, format=suffix, dpi=160, facecolor="white", metadata=metadata)
    return content.getvalue()
