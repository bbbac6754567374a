"""The figure of a study: every seed, means with intervals, and differences from the baseline."""

from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from rbnorm.lab.plots import INK, RC
from rbnorm.lab.statistics import Estimate
from rbnorm.lab.studies.results import ArmResult, Results

# Two of the colours of Okabe and Ito; the markers say the same in grey print.
_BASELINE: Final = ("#0072b2", "s")
_OTHER: Final = ("#d55e00", "o")
_AXIS: Final = {"clean": "test accuracy (%)", "shifted": "mean corruption accuracy (%)"}
_ROW: Final = 0.42  # inches


def study_figure(results: Results, measure: str) -> Figure:
    """One row for every arm that was measured: its accuracy, and beside it its gain.

    Args:
        results: What the study found.
        measure: One of :data:`rbnorm.lab.studies.results.MEASURES` that some arm has.
    """
    groups = {
        name: [arm for arm in arms if measure in arm.accuracy]
        for name, arms in results.groups().items()
    }
    groups = {name: arms for name, arms in groups.items() if arms}
    rows = [len(arms) for arms in groups.values()]
    with mpl.rc_context(RC):
        height = _ROW * sum(rows) + 0.55 * len(rows) + 0.6
        figure = Figure(figsize=(9, height), layout=ConstrainedLayoutEngine(wspace=0.06))
        panels = figure.subplots(
            len(groups), 2, squeeze=False, sharey="row", height_ratios=[n + 1 for n in rows]
        )
        for (accuracy, gain), (name, arms) in zip(panels, groups.items(), strict=True):
            _accuracies(accuracy, arms, measure)
            _gains(gain, arms, measure)
            accuracy.set_title(name, loc="left", fontsize=10)
            accuracy.set_yticks(range(len(arms)), [arm.arm.label for arm in arms])
            accuracy.set_ylim(len(arms) - 0.4, -0.6)
        panels[-1, 0].set_xlabel(_AXIS[measure])
        panels[-1, 1].set_xlabel("minus the baseline of the same seed (points)")
    return figure


def _accuracies(axes: Axes, arms: Sequence[ArmResult], measure: str) -> None:
    for y, result in enumerate(arms):
        _row(axes, y, result.accuracy[measure], _BASELINE if _is_baseline(result) else _OTHER)
    axes.grid(visible=False, axis="y")


def _gains(axes: Axes, arms: Sequence[ArmResult], measure: str) -> None:
    axes.axvline(0, color=INK, linewidth=1)
    for y, result in enumerate(arms):
        if measure in result.gain:
            _row(axes, y, result.gain[measure].estimate, _OTHER)
        elif _is_baseline(result):
            axes.plot(0, y, marker=_BASELINE[1], color=_BASELINE[0], markersize=5)
    axes.grid(visible=False, axis="y")


def _is_baseline(result: ArmResult) -> bool:
    return result.arm.baseline is None


def _row(axes: Axes, y: float, estimate: Estimate, style: tuple[str, str]) -> None:
    """Seeds as small marks above, mean and interval below."""
    color, marker = style
    values = 100 * np.asarray(estimate.values)
    axes.scatter(
        values, np.full(len(values), y - 0.2), s=13, color=color, marker=marker, alpha=0.5, lw=0
    )
    mean = 100 * estimate.mean
    low, high = (100 * end for end in estimate.interval or (estimate.mean,) * 2)
    axes.errorbar(
        mean,
        y + 0.12,
        xerr=[[mean - low], [high - mean]],
        color=color,
        marker=marker,
        markeredgecolor=INK,
        markeredgewidth=0.6,
        capsize=3.5,
        linewidth=1.7,
    )
