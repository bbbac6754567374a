"""A network that readers know, on all of its images, and images of equal mean and contrast."""

from dataclasses import replace
from typing import Any, Final

from rbnorm_lab.studies import limits, words
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.study import Arm, Settings, Study
from rbnorm_lab.studies.variants import MATCHED, comparisons_of
from rbnorm_lab.text import Text

OWN_DATA: Final = True

CIFAR: Final = Text(
    "The images are CIFAR-10's, re-encoded as JPEG. One run for each rate chose the learning "
    "rates, on held-out training images; all variants of RBN have RBN's, and images of equal mean "
    "and contrast the rates of the others.",
    "图像为重新编码成 JPEG 的 CIFAR-10。学习率由留出的训练图像上每个候选一次的训练选出；"
    "RBN 的各变体使用 RBN 的学习率，均值与对比度统一的图像使用与其他图像相同的学习率。",
)

PAIRED_T: Final = Text(
    "The exact sign-flip test of five seeds cannot fall below 0.0625: the primary comparisons are "
    "judged by the paired t test, which takes the differences as normally distributed.",
    "只有五个种子时，精确的符号翻转检验不可能低于 0.0625：主要比较采用配对 t 检验，"
    "它假定差值服从正态分布。",
)

words.PHRASES.update(
    {
        ", w_m begins at −0.9 in the first layer": "（首层 w_m 从 −0.9 开始）",
    }
)


def study(settings: Settings, rate: Rates) -> Study:
    """A network that readers know, on all of its images, and images of equal mean and contrast."""
    group, few = "whole batch", 3

    def arm(label: str, norm: str, lr_of: str, seeds: int | None = None, **values: Any) -> Arm:
        baseline = f"bn{MATCHED}" if values.get("match_moments") else "bn"
        shift = "whole" if values or norm not in ("bn", "rbn") else "whole-controls"
        values["shift"] = shift if settings.corrupted else "none"
        config = settings.config(norm, rate(settings.model, lr_of), **values)
        return Arm(group, label, config, None if label == "bn" else baseline, seeds)

    arms = [
        arm("bn", "bn", "bn"),
        arm("rbn", "rbn", "rbn"),
        replace(arm(f"bn{MATCHED}", "bn", "bn", match_moments=True), baseline="bn"),
        arm(f"rbn{MATCHED}", "rbn", "rbn", match_moments=True),
        arm("centring only", "rbn-center", "rbn", few),
        arm(
            "rbn, w_m begins at −0.9 in the first layer",
            "rbn:first_center_weight_init=-0.9",
            "rbn",
            few,
        ),
        arm("gn", "gn", "gn", few),
    ]
    for norm in ("rbn", "gn"):
        if rate(settings.model, norm) != rate(settings.model, "bn"):
            label = f"{norm}, BatchNorm's learning rate"
            arms.append(arm(label, norm, "bn", few))
    primary = [("rbn", "bn", "clean"), ("rbn", "bn", "shifted")]
    primary += [(f"rbn{MATCHED}", f"bn{MATCHED}", "shifted")]
    others = [("centring only", "bn", "shifted")]
    others += [(f"bn{MATCHED}", "bn", "shifted"), ("rbn", f"bn{MATCHED}", "shifted")]
    others += [(f"bn{MATCHED}", "bn", "clean"), ("gn", "bn", "clean"), ("gn", "bn", "shifted")]
    return Study(
        "cifar",
        Text("A whole training on CIFAR-10", "CIFAR-10 上的完整训练"),
        Text(
            "Does RBN help a network that reaches the accuracy it is known for, on clean and on "
            "corrupted images, and also where every image's own mean and contrast are equal?",
            "当网络达到公认的准确率时，RBN 在干净图像和退化图像上是否有帮助？"
            "当每张图像自身的均值与对比度都已统一时，是否仍有帮助？",
        ),
        (
            limits.SMALL_STUDY,
            limits.SEEDS_ONLY,
            CIFAR,
            limits.IMAGE_MOMENTS,
            PAIRED_T,
        ),
        tuple(arms),
        settings.all_seeds,
        comparisons_of(group, primary),
        others=comparisons_of(group, others),
        controls=settings.corrupted,
        paired_t=True,
    )
