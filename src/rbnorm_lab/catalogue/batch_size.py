"""Few images normalised together, at a constant number of images per optimiser step."""

from typing import Final

from rbnorm_lab.studies import limits, words
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Comparison, Settings, Study
from rbnorm_lab.studies.variants import (
    arms_of,
    at_rate_of_batch,
    at_rate_of_rbn,
    comparisons_of,
)
from rbnorm_lab.text import Text

_BATCHES: Final = (2, 4, 8)

words.PHRASES.update(
    {
        ", sorted by class": "，按类别排序",
        ", rate tuned for this batch": "（按此批量调学习率）",
    }
)


def study(settings: Settings, rate: Rates) -> Study:
    """Few images normalised together, at a constant number of images per optimiser step."""
    norms = {"bn": "bn", "rbn": "rbn"}
    arms = list(arms_of(settings, rate, "whole batch", {**norms, "gn": "gn"}))
    others: list[Comparison] = []
    for size in (size for size in reversed(_BATCHES) if size < settings.run.batch_size):
        group = f"normalisation batch {size}"
        own = [*arms_of(settings, rate, group, norms, norm_batch=size)]
        own += at_rate_of_rbn(settings, rate, group, "bn", norm_batch=size)
        labels, new = at_rate_of_batch(settings, rate, group, own, size)
        pairs = [(labels["rbn"], labels["bn"])]
        pairs += [("rbn", arm.label) for arm in reversed(own) if arm.config.norm == "bn"]
        by_class = f"{group}, sorted by class"
        own += new
        own += arms_of(settings, rate, by_class, norms, norm_batch=size, sorted_batches=True)
        arms += own
        others = [
            *comparisons_of(group, [(*pair, "clean") for pair in dict.fromkeys(pairs)]),
            *comparisons_of(by_class, [("rbn", "bn", "clean")]),
            *others,
        ]
    return Study(
        "batch-size",
        Text("Few images normalised together", "小归一化批量"),
        Text(
            "Does RBN help where the batch statistics are those of few images, or of images of few "
            "classes, while the optimiser sees the same batches?",
            "当批统计量只来自少数图像或少数类别，而优化器看到的批次不变时，RBN 是否有帮助？",
        ),
        (
            limits.SMALL_STUDY,
            limits.SEEDS_ONLY,
            limits.EXPLORATORY,
            limits.BATCHES,
            Text(
                "GroupNorm does not depend on which images stand together: its row for the whole "
                "batch holds for all.",
                "GroupNorm 与哪些图像放在一起无关：其整批那一行对所有归一化批量都成立。",
            ),
        ),
        tuple(arms),
        settings.all_seeds,
        others=tuple(others),
    )
