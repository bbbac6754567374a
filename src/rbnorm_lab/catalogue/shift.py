"""Corrupted test images, with other statistics as controls."""

from rbnorm_lab.studies import limits
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Settings, Study
from rbnorm_lab.studies.variants import MATCHED, SHIFT_NORMS, arms_of, comparisons_of, matched_arms
from rbnorm_lab.text import Text


def study(settings: Settings, rate: Rates) -> Study:
    """Corrupted test images, with other statistics as controls."""
    group = "whole batch"
    arms = arms_of(settings, rate, group, {norm: norm for norm in SHIFT_NORMS})
    return Study(
        "shift",
        Text("Corrupted test images", "退化的测试图像"),
        Text(
            "Is RBN more accurate than BatchNorm where the test images do not follow the training "
            "distribution, and would other statistics do the same for BatchNorm?",
            "当测试图像不服从训练分布时，RBN 是否比 BatchNorm 更准确？"
            "改用其他统计量能否让 BatchNorm 达到同样效果？",
        ),
        (
            limits.SMALL_STUDY,
            limits.SEEDS_ONLY,
            limits.RBN_RATE,
            limits.EXPLORATORY,
            limits.SHIFT,
            limits.IMAGE_MOMENTS,
        ),
        (*arms, *matched_arms(settings, rate, group)),
        settings.all_seeds,
        others=comparisons_of(
            group,
            [
                ("rbn", "bn", "shifted"),
                (f"bn{MATCHED}", "bn", "shifted"),
                ("rbn", f"bn{MATCHED}", "shifted"),
                (f"rbn{MATCHED}", f"bn{MATCHED}", "shifted"),
                ("rbn", "bn", "shifted", "test-batch"),
                ("rbn", "gn", "shifted"),
                (f"bn{MATCHED}", "bn", "clean"),
                ("rbn", "gn", "clean"),
            ],
        ),
        controls=True,
    )
