"""Where the centring weight should begin, beside images of equal mean and contrast."""

from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from rbnorm_lab.plots import NARROW, RC, legend, styles_of
from rbnorm_lab.studies import limits, words
from rbnorm_lab.studies.figures import AXIS
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.results import CLEAN, SHIFTED, ArmResult, Results
from rbnorm_lab.studies.study import Settings, Study
from rbnorm_lab.studies.variants import MATCHED, arms_of, comparisons_of, matched_arms
from rbnorm_lab.templates import Section
from rbnorm_lab.text import Text

GROUP: Final = "whole batch"
WHERE: Final = {
    "first layer": "rbn:first_center_weight_init={}",
    "first three layers": "rbn:first_center_weight_init={}:first_layers=3",
    "all layers": "rbn:center_weight_init={}",
}
VALUES: Final = ("0.25", "0.5", "0.9")
OTHERS: Final = ("bn", f"bn{MATCHED}", f"rbn{MATCHED}", "gn")

words.PHRASES.update(
    {
        "first layer, w_m": "首层，w_m",
        "first three layers, w_m": "前三层，w_m",
        "all layers, w_m": "所有层，w_m",
    }
)


def label(where: str, value: str) -> str:
    """An arm's name: where centring begins at a negative weight, and at which."""
    return f"{where}, w_m = −{value}"


def study(settings: Settings, rate: Rates) -> Study:
    """Where the centring weight should begin, beside images of equal mean and contrast."""
    begun = {
        label(where, value): spec.format(f"-{value}")
        for where, spec in WHERE.items()
        for value in VALUES
    }
    arms = arms_of(settings, rate, GROUP, {"rbn": "rbn", **begun}, baseline="rbn")
    others = arms_of(settings, rate, GROUP, {"bn": "bn", "gn": "gn"}, baseline="rbn")
    matched = matched_arms(settings, rate, GROUP, baseline="rbn")
    most = [(label(where, VALUES[-1]), "rbn") for where in WHERE]
    compared = [(*pair, measure) for measure in (SHIFTED, CLEAN) for pair in most]
    compared += [(f"bn{MATCHED}", most[-1][0], measure) for measure in (SHIFTED, CLEAN)]
    return Study(
        "center-init",
        Text("Where centring should begin", "中心化权重的初值"),
        Text(
            "Does it matter where the centring weight w_m begins, and in which layers; and does a "
            "network that begins with most of each image's mean taken away do what images of "
            "equal mean and contrast do?",
            "中心化权重 w_m 的初值以及取该初值的层是否重要？"
            "一开始就去掉每张图像大部分均值的网络，效果是否与统一图像的均值和对比度相同？",
        ),
        (
            limits.SMALL_STUDY,
            limits.SEEDS_ONLY,
            limits.RBN_RATE,
            limits.IMAGE_MOMENTS,
            limits.EXPLORATORY,
            limits.SHIFT,
        ),
        (*arms, *others, *matched),
        settings.all_seeds,
        others=comparisons_of(GROUP, compared),
        sections=sections,
    )


def sections(results: Results) -> list[Section]:
    """The figure of both accuracies, where they were measured."""
    if not lines(results):
        return []
    return [
        Section(
            Text("Clean and corrupted accuracy", "干净与退化图像上的准确率"),
            figure=("front", lambda narrow: front_figure(results, narrow=narrow)),
            caption=Text(
                "Means over seeds and 95 % intervals. Each line begins at RBN as it is, whose w_m "
                "begins at 0, and passes −0.25, −0.5 and −0.9.",
                "各点为种子均值及其 95 % 区间。每条线从默认的 RBN（w_m 从 0 开始）出发，"
                "依次经过 −0.25、−0.5 和 −0.9。",
            ),
        )
    ]


def lines(results: Results) -> dict[str, list[ArmResult]]:
    """By name what the figure joins by a line, or shows as one point."""
    measured = {
        result.arm.label: result
        for result in results.arms
        if {CLEAN, SHIFTED} <= result.accuracy.keys()
    }
    names = {where: ["rbn", *(label(where, v) for v in VALUES)] for where in WHERE}
    names |= {other: [other] for other in OTHERS}
    found = {name: [measured[n] for n in of if n in measured] for name, of in names.items()}
    return {name: of for name, of in found.items() if of}


def front_figure(results: Results, *, narrow: bool = False) -> Figure:
    """Accuracy under corruptions over that on clean images.

    Args:
        results: What the study found.
        narrow: For a phone.
    """
    drawn = lines(results)
    styles = styles_of(drawn)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(NARROW, 4.6) if narrow else (7.5, 4.8), layout="constrained")
        axes = figure.subplots()
        for name, of in drawn.items():
            color, marker, dashes = styles[name]
            x, y = ([100 * r.accuracy[m].mean for r in of] for m in (CLEAN, SHIFTED))
            margins = [[100 * (r.accuracy[m].margin or 0) for r in of] for m in (CLEAN, SHIFTED)]
            axes.plot(x, y, color=color, ls=dashes, marker=marker, markersize=6, label=name)
            bars: dict[str, Any] = {"fmt": "none", "ecolor": color, "elinewidth": 0.8, "alpha": 0.5}
            axes.errorbar(x, y, xerr=margins[0], yerr=margins[1], **bars)
        axes.set_xlabel(AXIS[CLEAN])
        axes.set_ylabel(AXIS[SHIFTED])
        legend(figure, axes, narrow=narrow)
    return figure
