"""The figures of the studies' pages, each a function of results."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from rbnorm_lab.plots import (
    BASELINE_MARK,
    INK,
    NARROW,
    RC,
    SUBJECT_MARK,
    Style,
    interval,
    legend,
    panels_of,
    percent,
    seeds,
    size_of,
    styles_of,
)
from rbnorm_lab.records import Record
from rbnorm_lab.statistics import Estimate
from rbnorm_lab.studies.results import ArmResult, Results
from rbnorm_lab.studies.sentences import SUBJECT

AXIS: Final = {
    "clean": "test accuracy (%)",
    "shifted": "mean corruption accuracy (%)",
    "iou": "mean IoU (%)",
    "source": "source accuracy (%)",
    "target": "target accuracy (%)",
}
_GAIN: Final = "minus the baseline of the same seed (points)"
_GAIN_SHORT: Final = "minus the baseline (points)"
_ROW: Final = 0.42  # inches


def study_figure(results: Results, measure: str, *, narrow: bool = False) -> Figure:
    """One row for every arm that was measured: its accuracy, and beside it its gain.

    Args:
        results: What the study found.
        measure: One of :data:`rbnorm_lab.studies.results.MEASURES` that some arm has.
        narrow: For a phone: the gains of a group stand below its accuracies.
    """
    groups = {
        name: [arm for arm in arms if measure in arm.accuracy]
        for name, arms in results.groups().items()
    }
    groups = {name: arms for name, arms in groups.items() if arms}
    rows = [len(arms) for arms in groups.values()]
    with mpl.rc_context(RC):
        height = _ROW * sum(rows) + 0.55 * len(rows) + 0.6
        size = (NARROW, 2 * height + 0.3 * len(rows)) if narrow else (9, height)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.06))
        panels = panels_of(figure, len(groups), 2, narrow=narrow, heights=[n + 1 for n in rows])
        for (accuracy, gain), (name, arms) in zip(panels, groups.items(), strict=True):
            _accuracies(accuracy, arms, measure)
            _gains(gain, arms, measure)
            accuracy.set_title(name, loc="left", fontsize=10)
            accuracy.set_yticks(range(len(arms)), [arm.arm.label for arm in arms])
            accuracy.set_ylim(len(arms) - 0.4, -0.6)
        for accuracy, gain in panels if narrow else panels[-1:]:
            accuracy.set_xlabel(AXIS[measure])
            gain.set_xlabel(_GAIN_SHORT if narrow else _GAIN)
    return figure


def _accuracies(axes: Axes, arms: Sequence[ArmResult], measure: str) -> None:
    for y, result in enumerate(arms):
        mark = BASELINE_MARK if _is_baseline(result) else SUBJECT_MARK
        _row(axes, y, result.accuracy[measure], mark)
    axes.set_xlim(_of_shares(*axes.get_xlim()))
    axes.grid(visible=False, axis="y")


def _of_shares(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis of per cent, past 0 and 100 by half a mark at most."""
    half = 0.015 * (min(high, 100) - max(low, 0))
    return max(low, -half), min(high, 100 + half)


def _gains(axes: Axes, arms: Sequence[ArmResult], measure: str) -> None:
    axes.axvline(0, color=INK, linewidth=1)
    for y, result in enumerate(arms):
        if measure in result.gain:
            _row(axes, y, result.gain[measure].estimate, SUBJECT_MARK)
        elif _is_baseline(result):
            interval(axes, 0, y, None, BASELINE_MARK)
    axes.grid(visible=False, axis="y")


def _is_baseline(result: ArmResult) -> bool:
    return result.arm.baseline is None


def _row(axes: Axes, y: float, estimate: Estimate, mark: tuple[str, str]) -> None:
    """Seeds as small marks above, mean and interval below."""
    seeds(axes, [100 * value for value in estimate.values], y - 0.2, mark)
    percent(axes, estimate, y + 0.12, mark)


class Traced(NamedTuple):
    """What records have a row of, to be drawn as lines.

    Attributes:
        values: The row of a record; empty where it has none, None where a run diverged.
        along: What the row goes along.
        what: What its values are.
        least: Where the axis of these begins; None to begin with the data.
        scale: What the values are multiplied by.
        every: Whether all arms are shown, and not only BatchNorm and RBN where a study has these.
    """

    values: Callable[[Record], Sequence[float | None]]
    along: str
    what: str
    least: float | None
    scale: float
    every: bool


def _epochs(record: Record) -> list[float | None]:
    """Its accuracy after every epoch; a line through two points is no curve."""
    traced = record.config.trace and len(record.epochs) > 2
    return [epoch.test_accuracy for epoch in record.epochs] if traced else []


BY_EPOCH: Final = Traced(_epochs, "epoch", "test accuracy (%)", None, 100, every=True)
BY_LAYER: Final = Traced(
    lambda record: [*record.channel_mean_std.values()],
    "normalisation layer, input to output",
    "std over channels of\nthe channels' mean output",
    0,
    1,
    every=False,
)


def traced_figure(results: Results, traced: Traced, *, narrow: bool = False) -> Figure:
    """A panel for every group, a line for every arm: every seed thin, the mean thick.

    Args:
        results: What the study found.
        traced: What is drawn.
        narrow: For a phone.
    """
    groups: dict[str, dict[str, list[Sequence[float | None]]]] = {}
    for result in results.arms:
        if rows := [row for r in result.records.values() if (row := traced.values(r))]:
            groups.setdefault(result.arm.group, {})[result.arm.label] = rows
    labels = list(dict.fromkeys(label for arms in groups.values() for label in arms))
    styles = styles_of(labels)
    chosen = [label for label in ("bn", SUBJECT) if label in styles and not traced.every] or labels
    with mpl.rc_context(RC):
        figure = Figure(figsize=size_of(3.9, 1, len(groups), narrow=narrow), layout="constrained")
        panels = panels_of(figure, 1, len(groups), narrow=narrow)[0]
        for axes, (group, arms) in zip(panels, groups.items(), strict=True):
            for label in chosen:
                if label in arms:
                    lines = traced.scale * np.array(arms[label], dtype=float)
                    _lines(axes, label, lines, styles[label])
            axes.set_title(group, loc="left", fontsize=10)
            axes.set_xlabel(traced.along)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels if narrow else panels[:1]:
            axes.set_ylabel(traced.what)
        panels[0].set_ylim(bottom=traced.least)
        legend(figure, panels[0], narrow=narrow)
    return figure


def _lines(axes: Axes, label: str, lines: npt.NDArray[np.float64], style: Style) -> None:
    color, marker, dashes = style
    places = np.arange(1, lines.shape[1] + 1)
    line: dict[str, Any] = {"color": color, "ls": dashes}
    axes.plot(places, lines.T, lw=0.8, alpha=0.35, **line)
    axes.plot(places, lines.mean(0), marker=marker, markersize=5, lw=2, label=label, **line)
