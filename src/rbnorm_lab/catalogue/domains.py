"""A pretrained network, fine-tuned on some domains and tested on another."""

from dataclasses import replace
from typing import Any, Final

from rbnorm_lab.domains.testing import MIXED, PRIOR, RE_ESTIMATED, SIZES, TENT, TEST_BATCH
from rbnorm_lab.shift import TRAINED
from rbnorm_lab.studies import words
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.results import TARGET, TOTAL
from rbnorm_lab.studies.study import Arm, Comparison, Settings, Study
from rbnorm_lab.text import Text

COMMAND: Final = "study domains"
BN, RBN, CENTRING = "BN", "RBN", "RBN, centring only"
FROZEN, AT_RATE_OF_RBN = "BN, frozen statistics", "BN, RBN's learning rate"
words.PHRASES.update({", centring only": "（仅中心化）", TOTAL: "全部目标域"})
words.STATISTICS.update(
    {
        RE_ESTIMATED: Text("statistics re-estimated on the target", "在目标域上重新估计的统计量"),
        **{
            name: Text(f"statistics of {size} test images", f"每 {size} 张测试图像的统计量")
            for size, name in TEST_BATCH.items()
        },
        **{
            name: Text(
                f"running statistics, as {PRIOR} images, and those of {size} test images",
                f"滑动统计量（按 {PRIOR} 张图像计）与每 {size} 张测试图像的统计量混合",
            )
            for size, name in MIXED.items()
        },
        TENT: Text(
            f"TENT, {SIZES[0]} test images at a time", f"TENT，每 {SIZES[0]} 张测试图像一批"
        ),
    }
)
LIMITS: Final = (
    Text(
        "One network, images of 96 x 96 that were scaled and re-encoded twice, few epochs: "
        "differences between arms are the result, not the accuracies.",
        "只有一个网络；图像为 96 x 96，经过两次缩放与重新编码；训练轮数少：应看各组之间的差异，"
        "而非准确率本身。",
    ),
    Text(
        "The interval has the four targets as fixed blocks: it shows the spread over seeds, not "
        "over other domains.",
        "区间以四个目标域为固定区组：只反映随机种子之间的差异，不反映换成其他域的差异。",
    ),
    Text(
        "Every arm's learning rate was chosen on held-out source images of each target's sources; "
        "centring only and one BN arm have RBN's.",
        "各组的学习率在源域的留出图像上按目标域分别选出；"
        "“仅中心化”和其中一组 BN 使用 RBN 的学习率。",
    ),
    Text(
        "Test batches are random mixtures of the target's classes; a camera's are not.",
        "测试批由目标域各类图像随机混合而成；实际相机的批次并非如此。",
    ),
)


def _same_rates(rate: Rates, model: str, target: str) -> bool:
    """Whether BN at RBN's rate is BN: then one run serves both."""
    return rate(model, "bn", target=target) == rate(model, "rbn", target=target)


def study(settings: Settings, rate: Rates) -> Study:
    """Every arm for every target, of which BN and RBN have most seeds and all statistics."""
    model, few = settings.model, settings.few_seeds

    def arm(target: str, label: str, norm: str, **values: Any) -> Arm:
        frozen, of_rbn = label == FROZEN, label in (CENTRING, AT_RATE_OF_RBN)
        chosen = "rbn" if of_rbn else norm.partition(":")[0]
        calibrated = norm.startswith("rbn")
        config = settings.config(
            norm,
            rate(model, chosen, frozen=frozen, target=target),
            calibration_rate=rate.calibration(model, "rbn", target=target) if calibrated else 1.0,
            target=target,
            frozen=frozen,
            shift="trained",
        )
        return Arm(target, label, config, None if label == BN else BN, **values)

    arms = [
        one
        for target in settings.targets
        for one in (
            arm(target, BN, "bn", controls=few),
            arm(target, RBN, "rbn:preserve=yes", controls=few),
            arm(target, CENTRING, "rbn-center", seeds=few),
            arm(target, FROZEN, "bn", seeds=few),
            arm(
                target,
                AT_RATE_OF_RBN,
                "bn",
                seeds=few,
                controls=few * _same_rates(rate, model, target),
            ),
        )
    ]

    def against(treatment: str, control: str, statistics: str = TRAINED) -> Comparison:
        return Comparison(None, treatment, control, TARGET, statistics=statistics)

    return Study(
        "domains",
        Text("A domain that was not trained on", "未参与训练的域"),
        Text(
            "A pretrained network is fine-tuned on some domains and deployed on another: does RBN, "
            "or another remedy for BatchNorm, keep more of its accuracy?",
            "预训练网络在若干域上微调，再部署到另一个域：RBN 或其他针对 BatchNorm 的补救办法"
            "能否保住更多准确率？",
        ),
        LIMITS,
        tuple(arms),
        settings.all_seeds,
        (replace(against(RBN, BN), called=words.MEASURES[TARGET]),),
        others=(
            against(RBN, AT_RATE_OF_RBN),
            against(CENTRING, BN),
            against(FROZEN, BN),
            *(against(BN, BN, name) for name in (RE_ESTIMATED, TEST_BATCH[SIZES[0]], TENT)),
        ),
        blocks=True,
    )
