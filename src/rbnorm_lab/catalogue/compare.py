"""Every norm at every batch size, and what corrupted images and other statistics do to them."""

from dataclasses import replace
from typing import Final

from rbnorm_lab.config import LR_BATCH_SIZE
from rbnorm_lab.studies import limits
from rbnorm_lab.studies.study import Arm, Rate, Settings, Study
from rbnorm_lab.studies.variants import comparisons_of
from rbnorm_lab.text import Text

COMMAND: Final = "compare"
UNTUNED: Final = Text(
    "Nothing was tuned for any one norm: the learning rate is in proportion to the batch size.",
    "没有为任何一种归一化单独调参：学习率与批大小成正比。",
)


def study(settings: Settings, rate: Rate) -> Study:
    """One arm for every norm and batch size; nothing is tuned."""
    shared = settings.run
    arms = [
        Arm(
            f"batch size {size}",
            norm,
            replace(shared, norm=norm, batch_size=size, lr=shared.lr * size / LR_BATCH_SIZE),
            None if norm == "bn" else "bn",
        )
        for size in dict.fromkeys(settings.batch_sizes)
        for norm in dict.fromkeys(settings.norms)
    ]
    pairs = [("rbn", "bn", "clean")] if {"rbn", "bn"} <= set(settings.norms) else []
    if shared.conditions:
        pairs += [("rbn", "bn", "shifted") for _ in pairs]
    return Study(
        "compare",
        Text("Representative Batch Normalization against other norms", "RBN 与其他归一化的对比"),
        Text(
            "Does a network that calibrates its batch statistics by each image (RBN) classify "
            "held-out images better than one with BatchNorm (BN), and how do the norms without "
            "batch statistics compare?",
            "按每张图像校准批统计量的网络（RBN）对测试图像的分类是否比 BatchNorm（BN）更准确？"
            "不使用批统计量的归一化又如何？",
        ),
        (limits.SMALL_STUDY, limits.SEEDS_ONLY, limits.EXPLORATORY, UNTUNED),
        tuple(arms),
        settings.all_seeds,
        others=tuple(
            c
            for group in dict.fromkeys(arm.group for arm in arms)
            for c in comparisons_of(group, pairs)
        ),
        controls=bool(shared.conditions),
    )
