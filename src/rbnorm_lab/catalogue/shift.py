"""Corrupted test images, with other statistics as controls."""

from rbnorm_lab.studies import limits
from rbnorm_lab.studies.study import Rate, Settings, Study
from rbnorm_lab.studies.variants import SHIFT_NORMS, arms_of, comparisons_of
from rbnorm_lab.text import Text


def study(settings: Settings, rate: Rate) -> Study:
    """Corrupted test images, with other statistics as controls."""
    arms = arms_of(settings, rate, "whole batch", {norm: norm for norm in SHIFT_NORMS})
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
        ),
        arms,
        settings.all_seeds,
        others=comparisons_of(
            "whole batch",
            [
                ("rbn", "bn", "shifted"),
                ("rbn", "gn", "shifted"),
                ("rbn", "bn", "shifted", "test-batch"),
                ("rbn", "gn", "clean"),
            ],
        ),
        controls=True,
    )
