"""Where the centring weight should begin, beside images of equal mean and contrast."""

from typing import Final

from rbnorm_lab.studies import limits, words
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.results import CLEAN, SHIFTED
from rbnorm_lab.studies.study import Settings, Study
from rbnorm_lab.studies.variants import MATCHED, arms_of, comparisons_of, matched_arms
from rbnorm_lab.text import Text

GROUP: Final = "whole batch"
WHERE: Final = {
    "first layer": "rbn:first_center_weight_init={}",
    "first three layers": "rbn:first_center_weight_init={}:first_layers=3",
    "all layers": "rbn:center_weight_init={}",
}
VALUES: Final = ("0.25", "0.5", "0.9")

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
    )
