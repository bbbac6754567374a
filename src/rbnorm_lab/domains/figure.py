"""The figures of the study: differences by target, and remedies at test time."""

from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rbnorm_lab.domains.plan import ARMS, BN, RBN
from rbnorm_lab.domains.results import DomainResults
from rbnorm_lab.domains.testing import STATISTICS
from rbnorm_lab.plots import (
    BASELINE_MARK,
    INK,
    NARROW,
    RC,
    SUBJECT_MARK,
    panels_of,
    percent,
    seeds,
)

_MARKS: Final = {"bn": BASELINE_MARK, "rbn": SUBJECT_MARK}
_ROW: Final = 0.5  # inches


def targets_figure(results: DomainResults, *, narrow: bool = False) -> Figure | None:
    """Every arm minus BN, on each target and on all; None without a difference."""
    gains = {arm: found for arm in ARMS if arm is not BN and (found := results.difference(arm, BN))}
    if not gains:
        return None
    targets = results.settings.targets
    with mpl.rc_context(RC):
        columns, height = len(targets) + 1, 1.2 + _ROW * len(gains)
        size = (NARROW, 0.75 * columns * height) if narrow else (9, height)
        figure = Figure(figsize=size, layout="constrained")
        panels = panels_of(figure, 1, columns, narrow=narrow)[0]
        for axes, name in zip(panels, ["all targets", *targets], strict=True):
            axes.set_title(name, loc="left", fontsize=10)
            axes.axvline(0, color=INK, linewidth=1)
            for y, found in enumerate(gains.values()):
                if name in found.blocks:
                    _seeds(axes, y, found.blocks[name])
                else:
                    percent(axes, found, y, SUBJECT_MARK)
            axes.grid(visible=False, axis="y")
            axes.set_xlabel("minus BN (points)")
        panels[0].set_yticks(range(len(gains)), [arm.text.en for arm in gains])
        panels[0].set_ylim(len(gains) - 0.5, -0.5)
    return figure


def remedies_figure(results: DomainResults, *, narrow: bool = False) -> Figure | None:
    """Accuracy of BN and RBN with every kind of statistics; None where they were not tried."""
    found = {
        (name, arm.name): value
        for name in STATISTICS
        for arm in (BN, RBN)
        if (value := results.accuracy(arm, name))
    }
    names = [name for name in STATISTICS if any(key[0] == name for key in found)]
    if len(names) < 2:
        return None
    with mpl.rc_context(RC):
        width = NARROW if narrow else 9
        figure = Figure(figsize=(width, 1 + _ROW * len(names)), layout="constrained")
        axes = figure.subplots()
        for (name, arm), value in found.items():
            y = names.index(name) + (0.14 if arm == RBN.name else -0.14)
            percent(axes, value, y, _MARKS[arm], arm.upper() if name == names[0] else None)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("accuracy on the target (%)")
        axes.legend()
    return figure


def _seeds(axes: Axes, y: float, values: Sequence[float]) -> None:
    shares = [100 * value for value in values]
    seeds(axes, shares, y, SUBJECT_MARK)
    axes.plot(sum(shares) / len(shares), y, marker="|", color=INK, markersize=12)
