"""The figures of the studies: seeds, means with intervals, differences; and costs as ratios."""

from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from rbnorm_lab.bench.cases import BASELINE
from rbnorm_lab.plots import (
    BASELINE_MARK,
    INK,
    NARROW,
    OTHER_MARK,
    RC,
    SUBJECT_MARK,
    interval,
    panels_of,
    percent,
    seeds,
)
from rbnorm_lab.statistics import Estimate
from rbnorm_lab.studies.answer import SUBJECT
from rbnorm_lab.studies.costs import RATIOS, Costs
from rbnorm_lab.studies.results import ArmResult, Results

_AXIS: Final = {
    "clean": "test accuracy (%)",
    "shifted": "mean corruption accuracy (%)",
    "iou": "mean IoU (%)",
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
            accuracy.set_xlabel(_AXIS[measure])
            gain.set_xlabel(_GAIN_SHORT if narrow else _GAIN)
    return figure


def _accuracies(axes: Axes, arms: Sequence[ArmResult], measure: str) -> None:
    for y, result in enumerate(arms):
        _row(
            axes,
            y,
            result.accuracy[measure],
            BASELINE_MARK if _is_baseline(result) else SUBJECT_MARK,
        )
    axes.grid(visible=False, axis="y")


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


def cost_figure(costs: Costs, *, narrow: bool = False) -> Figure:
    """Every norm's ratios, a panel for each; the line at 1 is BatchNorm's median or size."""
    norms = [cost.norm for cost in costs.norms]
    rows, columns = (2, len(RATIOS) // 2) if narrow else (1, len(RATIOS))
    height = rows * (0.32 * len(norms) + 1.1)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(NARROW if narrow else 10, height), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
        for axes, (name, words) in zip(panels, RATIOS.items(), strict=True):
            axes.axvline(1, color=INK, linewidth=1)
            for y, cost in enumerate(costs.norms):
                ratio = cost.ratios[name]
                interval(axes, ratio.value, y, ratio.range, _mark(cost.norm))
            axes.margins(x=0.1)
            axes.set_xlim(left=0)
            axes.set_title(words.en, loc="left", fontsize=10)
            axes.set_xlabel("/ BatchNorm's")
        panels[0].set_yticks(range(len(norms)), norms)
        panels[0].set_ylim(len(norms) - 0.5, -0.5)
    return figure


def _mark(norm: str) -> tuple[str, str]:
    if norm == BASELINE:
        return BASELINE_MARK
    return SUBJECT_MARK if norm.startswith(SUBJECT) else OTHER_MARK
