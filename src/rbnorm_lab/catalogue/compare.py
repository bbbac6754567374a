"""Every norm at every batch size, and what corrupted images and other statistics do to them."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Final

from rbnorm_lab.config import LR_BATCH_SIZE
from rbnorm_lab.shift import TRAINED
from rbnorm_lab.studies import limits
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.results import CLEAN, SHIFTED, ArmResult, Results, controls
from rbnorm_lab.studies.sentences import SUBJECT, evidence_of, verdict
from rbnorm_lab.studies.study import Arm, Settings, Study
from rbnorm_lab.studies.variants import comparisons_of
from rbnorm_lab.studies.words import KINDS, STATISTICS, chinese, side
from rbnorm_lab.text import Text, joined, percent

COMMAND: Final = "compare"
_ON_CLEAN: Final = Text("on clean images", "在干净图像上")
_SIDES: Final = (side(SUBJECT, TRAINED), side("bn", TRAINED))
UNTUNED: Final = Text(
    "Nothing was tuned for any one norm: the learning rate is in proportion to the batch size.",
    "没有为任何一种归一化单独调参：学习率与批大小成正比。",
)


def study(settings: Settings, rate: Rates) -> Study:
    """One arm for every norm and batch size; nothing is tuned."""
    shared = settings.run
    arms = [
        Arm(
            f"batch size {size}",
            norm,
            replace(
                shared,
                norm=norm,
                batch_size=size,
                lr=shared.lr * size / LR_BATCH_SIZE[shared.recipe],
            ),
            None if norm == "bn" else "bn",
        )
        for size in dict.fromkeys(settings.batch_sizes)
        for norm in dict.fromkeys(settings.norms)
    ]
    measures = (CLEAN, SHIFTED) if shared.conditions else (CLEAN,)
    both = {SUBJECT, "bn"} <= set(settings.norms)
    pairs = [(SUBJECT, "bn", measure) for measure in measures] if both else []
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
        clauses=clauses,
    )


def clauses(results: Results) -> Sequence[Text]:
    """By batch size: what corruption costs BatchNorm, what wins it back, and whether RBN does."""
    found = []
    for group, arms in results.groups().items():
        by_norm = {result.arm.label: result for result in arms if SHIFTED in result.accuracy}
        if "bn" in by_norm:
            said = [_loss(by_norm["bn"]), _best(results, by_norm)]
            said += _of_subject(by_norm[SUBJECT]) if SUBJECT in by_norm else []
            of = joined(said, ", ", "，")
            found.append(Text(f"{group}: {of.en}", f"{chinese(group)}：{of.zh}"))
    return found


def _loss(bn: ArmResult) -> Text:
    """On the images that are corrupted, before and after."""
    records = list(bn.records.values())
    names = [condition.split("/") for condition in records[0].config.conditions]
    kinds = joined((Text(f"{KINDS[k].en} {s}", f"{KINDS[k].zh} {s}") for k, s in names), ", ", "、")
    clean = percent(fmean(record.shifted[TRAINED][CLEAN] for record in records))
    left = percent(bn.accuracy[SHIFTED].mean)
    return Text(
        f"{kinds.en} takes bn from {clean} to {left} %",
        f"bn 的准确率在{kinds.zh} 下由 {clean}% 变为 {left}%",
    )


def _best(results: Results, by_norm: dict[str, ArmResult]) -> Text:
    """What wins back most of it, other than RBN."""
    tried = [
        (STATISTICS[control.statistics], control.gain)
        for control in controls(results)
        if control.result is by_norm["bn"]
    ]
    tried += [
        (side(norm, TRAINED), result.gain[SHIFTED])
        for norm, result in by_norm.items()
        if SHIFTED in result.gain and not norm.startswith(SUBJECT)
    ]
    name, most = max(tried, key=lambda one: one[1].estimate.mean)
    if most.estimate.mean <= 0:
        return Text("nothing that was tried wins it back", "尝试过的办法都未能挽回")
    evidence, doubt = evidence_of(most), Text("", "")
    if not most.estimate.detectable:
        doubt = Text(", too few seeds to be sure", "，种子太少，尚不能确定")
    return Text(
        f"most is won back by {name.en} ({evidence.en}{doubt.en})",
        f"挽回最多的是{name.zh}（{evidence.zh}{doubt.zh}）",
    )


def _of_subject(rbn: ArmResult) -> list[Text]:
    """Whether RBN wins it back, and what it does on clean images."""
    found = []
    for measure, where in ((SHIFTED, Text("on these images", "此时")), (CLEAN, _ON_CLEAN)):
        if gain := rbn.gain.get(measure):
            said, evidence = verdict(*_SIDES, gain.estimate), evidence_of(gain)
            en, zh = f"{where.en} {said.en}", f"{where.zh}{said.zh}"
            found.append(Text(f"{en} ({evidence.en})", f"{zh}（{evidence.zh}）"))
    return found
