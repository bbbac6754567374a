"""What each part of RBN contributes."""

from typing import Final

from rbnorm_lab.studies import limits, words
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Settings, Study
from rbnorm_lab.studies.variants import (
    arms_of,
    at_rate_of_rbn,
    comparisons_of,
)
from rbnorm_lab.text import Text

ABLATION: Final = {
    "neither": "bn",
    "both": "rbn",
    "centring only": "rbn-center",
    "scaling only": "rbn-scale",
    "statistic: max": "rbn:statistic=max",
    "statistic: std": "rbn:statistic=std",
    "restriction: tanh": "rbn:restrict=tanh",
    "restriction: hardsigmoid": "rbn:restrict=hardsigmoid",
    "restriction: identity": "rbn:restrict=identity",
}

words.PHRASES.update(
    {
        "neither": "都不用",
        "both": "两者都用",
        "statistic: ": "统计量：",
        "restriction: ": "限制函数：",
    }
)


def study(settings: Settings, rate: Rates) -> Study:
    """What each part of RBN contributes."""
    group, measures = "whole batch", ("clean", "shifted")
    alike = at_rate_of_rbn(settings, rate, group, "neither")
    pairs = [("both", half) for half in ("centring only", "scaling only")]
    pairs += [("both", arm.label) for arm in alike]
    pairs += [(label, "both") for label in ABLATION if ":" in label]
    return Study(
        "ablation",
        Text("What each part of RBN contributes", "RBN 各部分的贡献"),
        Text(
            "Do centring and scaling both contribute, and do the statistic and the restricting "
            "function matter?",
            "中心化校准与缩放校准是否都有贡献？统计量与限制函数的选择是否重要？",
        ),
        (
            limits.SMALL_STUDY,
            limits.SEEDS_ONLY,
            limits.RBN_RATE,
            limits.EXPLORATORY,
            limits.SHIFT,
        ),
        (*arms_of(settings, rate, group, ABLATION), *alike),
        settings.all_seeds,
        others=comparisons_of(group, [(*pair, m) for pair in pairs for m in measures]),
    )
