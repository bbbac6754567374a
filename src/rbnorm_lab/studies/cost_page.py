"""The page of the costs, redrawn from the benchmark's rows alone."""

from pathlib import Path
from typing import Any, Final

from rbnorm_lab.bench.networks import SMALL_MODEL
from rbnorm_lab.studies.answer import NOT_RUN, SUBJECT
from rbnorm_lab.studies.arms import Study
from rbnorm_lab.studies.costs import RATIOS, Costs, NormCost, Ratio, bench_command
from rbnorm_lab.studies.figure import cost_figure
from rbnorm_lab.studies.words import chinese
from rbnorm_lab.templates import render, write_page
from rbnorm_lab.text import Text

FIGURE: Final = "ratios"


def write_cost_page(study: Study, costs: Costs | None, out: Path, command: str) -> None:
    """Draw ``report.html`` and the figure's files in the study's folder.

    Args:
        study: What was asked.
        costs: What was measured, or None for a page that says so.
        out: The folder of the studies, with the rows and the study's folder in it.
        command: The command line that makes this page again.
    """
    machine: dict[str, Any] = costs.machine if costs else {}
    measuring = bench_command(out, "cpu" if machine.get("device", "cpu") == "cpu" else "cuda")
    write_page(
        lambda narrow: {FIGURE: cost_figure(costs, narrow=narrow)} if costs else {},
        lambda drawn: render(
            "cost.html",
            study=study,
            costs=costs,
            answer=cost_answer(costs),
            figure=drawn.get(FIGURE),
            model=SMALL_MODEL,
            ratios=RATIOS,
            measuring=measuring,
            bracketed=bracketed,
            commands=[measuring, command],
            facts={name: value or "unknown" for name, value in machine.items()},
        ),
        out / study.name,
        chinese,
    )


def cost_answer(costs: Costs | None) -> Text:
    """RBN's costs next to BatchNorm's, and whose training step costs least and most."""
    if costs is None:
        return NOT_RUN
    ours, least, most = costs.of(SUBJECT), costs.norms[0], costs.norms[-1]
    step, inference, saved, peak = (bracketed(ours.ratios[name]) for name in RATIOS)
    more = f"{ours.more_parameters:,} ({ours.more_share:.1%})"
    return Text(
        f"In {SMALL_MODEL}, a training step with RBN takes {step} times as long as with BatchNorm "
        f"and inference {inference} times (medians and quartiles), keeps {saved} times as many "
        f"bytes for the backward pass at {peak} times the peak memory, and adds {more} parameters; "
        f"the cheapest training step is that of {_extreme(least)}, the dearest that of "
        f"{_extreme(most)}.",
        f"在 {SMALL_MODEL} 中，与 BatchNorm 相比，RBN 的训练步耗时为 {step} 倍，推理耗时为 "
        f"{inference} 倍（中位数与四分位数），为反向传播保存的字节数为 {saved} 倍，峰值内存为 "
        f"{peak} 倍，参数增加 {more} 个；训练步最省时的是 {_extreme(least)}，"
        f"最费时的是 {_extreme(most)}。",
    )


def bracketed(ratio: Ratio) -> str:
    """A ratio with its range, where it has one."""
    if ratio.range is None:
        return f"{ratio.value:.2f}"
    low, high = ratio.range
    return f"{ratio.value:.2f} [{low:.2f}, {high:.2f}]"


def _extreme(cost: NormCost) -> str:
    return f"{cost.norm} ({cost.ratios['step'].value:.2f})"
