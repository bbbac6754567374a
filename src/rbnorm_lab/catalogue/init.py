"""How the calibration should begin, and whether it should decay."""

from typing import Final

from rbnorm_lab.studies import limits, words
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Arm, Settings, Study
from rbnorm_lab.studies.variants import (
    arms_of,
)
from rbnorm_lab.text import Text

INIT: Final = {
    "w_b = 1": "rbn",
    "w_b = 0": "rbn:scale_bias_init=0",
    "w_b = 2": "rbn:scale_bias_init=2",
    "w_b = 4": "rbn:scale_bias_init=4",
    "w_b = 1, gamma compensated": "rbn:preserve=yes",
    "w_b = 0, gamma compensated": "rbn:preserve=yes:scale_bias_init=0",
    "w_b = 2, gamma compensated": "rbn:preserve=yes:scale_bias_init=2",
    "w_b = 4, gamma compensated": "rbn:preserve=yes:scale_bias_init=4",
    "w_v = 0.1": "rbn:scale_weight_init=0.1",
    "w_v = 1": "rbn:scale_weight_init=1",
}

words.PHRASES.update(
    {
        ", gamma compensated": "，补偿 γ",
        "no decay of the calibration": "校准参数不做权重衰减",
    }
)


def study(settings: Settings, rate: Rates) -> Study:
    """How the calibration should begin, and whether it should decay."""
    group = "whole batch"
    arms = arms_of(settings, rate, group, {"bn": "bn", **INIT}, baseline="w_b = 1")
    free = settings.config(
        "rbn",
        rate(settings.model, "rbn"),
        shift="trained" if settings.corrupted else "none",
        decay_calibration=False,
    )
    return Study(
        "init",
        Text("How the calibration should begin", "校准参数的初始化"),
        Text(
            "Does it matter where the gate's bias w_b and weight w_v begin, whether gamma "
            "compensates for the initial gate, and whether the calibration decays?",
            "门控偏置 w_b 与权重 w_v 的初值、γ 是否补偿初始门控、"
            "校准参数是否做权重衰减，这些是否重要？",
        ),
        (limits.SMALL_STUDY, limits.SEEDS_ONLY, limits.RBN_RATE, limits.EXPLORATORY),
        (*arms, Arm(group, "no decay of the calibration", free, "w_b = 1")),
        settings.all_seeds,
    )
