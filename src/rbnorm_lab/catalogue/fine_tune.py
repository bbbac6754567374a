"""A network trained with BatchNorm, converted and trained on."""

from typing import Final

from rbnorm_lab.studies import limits, words
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Arm, Settings, Study
from rbnorm_lab.text import Text

_FINE_TUNE: Final = 0.1  # of the learning rate of training

LIMIT: Final = Text(
    "Both arms are trained on at a tenth of the rate chosen for BatchNorm, which was not tuned.",
    "两组都以为 BatchNorm 选出的学习率的十分之一继续训练，这个比例没有调过。",
)

words.PHRASES.update(
    {
        "fine-tuned": "微调",
        "converted to ": "转换为 ",
    }
)


def study(settings: Settings, rate: Rates) -> Study:
    """A network trained with BatchNorm, converted and trained on."""
    trained = rate(settings.model, "bn")
    values = {
        "pretrain_epochs": settings.run.epochs,
        "pretrain_lr": trained,
        "shift": "trained" if settings.corrupted else "none",
    }
    epochs = max(1, settings.run.epochs // 3)
    arms = tuple(
        Arm(
            "fine-tuned",
            label,
            settings.config(norm, _FINE_TUNE * trained, **{**values, "epochs": epochs}),
            None if norm == "bn" else "bn",
        )
        for label, norm in (("bn", "bn"), ("converted to rbn", "rbn:preserve=yes"))
    )
    return Study(
        "fine-tune",
        Text("From BatchNorm to RBN by fine-tuning", "从 BatchNorm 微调到 RBN"),
        Text(
            "Does a network trained with BatchNorm gain by converting it, with its function "
            "preserved, and fine-tuning?",
            "把用 BatchNorm 训练好的网络在保持函数不变的前提下转换为 RBN 并微调，是否有收益？",
        ),
        (limits.SMALL_STUDY, limits.SEEDS_ONLY, limits.EXPLORATORY, LIMIT),
        arms,
        settings.all_seeds,
    )
