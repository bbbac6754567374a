"""The comparisons that the project's claims rest on."""

from typing import Final

from rbnorm_lab.studies import limits
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Comparison, Settings, Study
from rbnorm_lab.studies.variants import (
    arms_of,
    at_rate_of_rbn,
    comparisons_of,
)
from rbnorm_lab.text import Text

SMALL_BATCH: Final = 2


def study(settings: Settings, rate: Rates) -> Study:
    """The comparisons that the project's claims rest on."""
    whole, small = "whole batch", f"normalisation batch {SMALL_BATCH}"
    alike = (
        *at_rate_of_rbn(settings, rate, whole, "bn"),
        *at_rate_of_rbn(settings, rate, small, "bn", norm_batch=SMALL_BATCH),
    )
    arms = (
        *arms_of(settings, rate, whole, {"bn": "bn", "rbn": "rbn"}),
        *arms_of(settings, rate, small, {"bn": "bn", "rbn": "rbn"}, norm_batch=SMALL_BATCH),
        *alike,
    )
    comparisons = (
        (whole, "clean", "accuracy on clean test images", "干净测试图像上的准确率"),
        (whole, "shifted", "mean accuracy under corruptions", "各种图像退化下的平均准确率"),
        (
            small,
            "clean",
            f"accuracy on clean test images, {SMALL_BATCH} images normalised together",
            f"归一化批量为 {SMALL_BATCH} 时干净测试图像上的准确率",
        ),
    )
    return Study(
        "primary",
        Text("RBN against BatchNorm", "RBN 与 BatchNorm 的对比"),
        Text(
            "Is RBN more accurate than BatchNorm on clean images, on corrupted images, and where "
            "batch statistics are those of two images?",
            "在干净图像上、在退化图像上，以及当批统计量只来自两张图像时，"
            "RBN 是否比 BatchNorm 更准确？",
        ),
        (limits.SMALL_STUDY, limits.SEEDS_ONLY, limits.RATES, limits.BATCHES, limits.SHIFT),
        arms,
        settings.all_seeds,
        tuple(
            Comparison(group, "rbn", "bn", measure, called=Text(en, zh))
            for group, measure, en, zh in comparisons
        ),
        others=tuple(
            comparison
            for arm in alike
            for measure in (("clean",) if arm.config.norm_batch else ("clean", "shifted"))
            for comparison in comparisons_of(arm.group, [("rbn", arm.label, measure)])
        ),
    )
