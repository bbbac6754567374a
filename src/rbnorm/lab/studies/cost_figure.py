"""The figure of the costs: ratios to BatchNorm, a panel for each."""

from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rbnorm.lab.bench.candidates import BASELINE
from rbnorm.lab.plots import INK, RC
from rbnorm.lab.studies.answer import SUBJECT
from rbnorm.lab.studies.costs import RATIOS, Costs, Ratio

# Three of the colours of Okabe and Ito; the markers say the same in grey print.
_BASELINE: Final = ("#0072b2", "s")
_SUBJECT: Final = ("#d55e00", "o")
_OTHER: Final = ("#009e73", "^")


def cost_figure(costs: Costs) -> Figure:
    """Every norm's ratios; the line at 1 is BatchNorm's median or size."""
    norms = [cost.norm for cost in costs.norms]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(10, 0.32 * len(norms) + 1.1), layout="constrained")
        panels = figure.subplots(1, len(RATIOS), squeeze=False, sharey=True)[0]
        for axes, (name, words) in zip(panels, RATIOS.items(), strict=True):
            _panel(axes, norms, [cost.ratios[name] for cost in costs.norms])
            axes.set_title(words.en, loc="left", fontsize=10)
            axes.set_xlabel("/ BatchNorm's")
        panels[0].set_yticks(range(len(norms)), norms)
        panels[0].set_ylim(len(norms) - 0.5, -0.5)
    return figure


def _panel(axes: Axes, norms: Sequence[str], ratios: Sequence[Ratio]) -> None:
    axes.axvline(1, color=INK, linewidth=1)
    for y, (norm, ratio) in enumerate(zip(norms, ratios, strict=True)):
        color, marker = _style(norm)
        low, high = ratio.range or (ratio.value, ratio.value)
        axes.errorbar(
            ratio.value,
            y,
            xerr=[[ratio.value - low], [high - ratio.value]],
            color=color,
            marker=marker,
            markeredgecolor=INK,
            markeredgewidth=0.6,
            capsize=3.5,
            linewidth=1.7,
        )
    axes.margins(x=0.1)
    axes.set_xlim(left=0)


def _style(norm: str) -> tuple[str, str]:
    if norm == BASELINE:
        return _BASELINE
    return _SUBJECT if norm.startswith(SUBJECT) else _OTHER
