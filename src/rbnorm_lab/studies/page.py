"""The page of a study, redrawn from its records alone: one file in English and Chinese."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from rbnorm_lab.config import CLEAN
from rbnorm_lab.shift import mean_corruption_accuracy
from rbnorm_lab.statistics import estimate
from rbnorm_lab.studies.figures import (
    BY_EPOCH,
    BY_LAYER,
    Traced,
    study_figure,
    traced_figure,
)
from rbnorm_lab.studies.rates import Candidate
from rbnorm_lab.studies.results import ArmResult, Compared, Results, controls
from rbnorm_lab.studies.sentences import answer
from rbnorm_lab.studies.study import Arm
from rbnorm_lab.studies.words import KINDS, MEASURES, STATISTICS, chinese
from rbnorm_lab.templates import Cell, Section, Table, environments, write_page
from rbnorm_lab.text import Text, bracketed, p_value, percent, with_margin

Row = list[Cell]
Tuning = Sequence[tuple[Candidate, bool]]
_SEEDS: Final = Text("seeds", "种子数")
_GROUP: Final = Text("group", "组")
_ARM: Final = Text("arm", "实验组")
_POINTS: Final = Text("points", "百分点")
_SIGN_FLIP: Final = Text("p, sign flip", "p（符号翻转）")
_NOT_RUN: Final = Text("not run", "未运行")


_TRACED: Final = {
    "epochs": (
        BY_EPOCH,
        Text("Accuracy by epoch", "逐周期的准确率"),
        Text(
            "Accuracy on clean test images after every epoch. Thin lines are seeds, the thick line "
            "is their mean.",
            "每个训练周期之后在干净测试图像上的准确率。细线是各个种子，粗线是其均值。",
        ),
    ),
    "channel-means": (
        BY_LAYER,
        Text("How even the channels are", "各通道是否均匀"),
        Text(
            "For every normalisation layer of the trained network: each channel's mean output "
            "over all test images and positions, then the standard deviation of these means "
            "over the channels. A smaller value means channels that contribute more evenly. "
            "Thin lines are seeds, the thick line is their mean.",
            "训练好的网络的每个归一化层：先对所有测试图像和位置求各通道输出的均值，"
            "再求这些均值在通道之间的标准差。数值越小，各通道的贡献越均匀。"
            "细线是各个种子，粗线是其均值。",
        ),
    ),
}


def write_study(results: Results, tuning: Tuning, out: Path, commands: Sequence[str]) -> None:
    """Draw ``report.html`` and each figure's files.

    Args:
        results: What the study found.
        tuning: The learning rates that were tried, and which were chosen.
        out: The folder to write to.
        commands: The command lines that make this page again.
    """
    study, records = results.study, results.records
    diverged = sum(record.diverged for record in records)
    limits = list(study.limits)
    if diverged:
        limits.append(
            Text(
                f"{diverged} of {len(records)} runs diverged and are counted with the accuracy "
                "they ended at.",
                f"{len(records)} 次运行中有 {diverged} 次发散，按其最终准确率计入。",
            )
        )
    facts = environments(records)
    if records:
        facts["runs"] = f"{len(records)}, {max(record.created for record in records)}"
    sections = list(_sections(results, tuning)) if records else []
    sections += [_failures(results)] if results.failed else []
    write_page(
        out,
        [*sections, *study.sections(results), *_run(results)],
        chinese,
        study=study,
        answer=answer(results),
        limits=limits,
        commands=commands,
        facts=facts,
    )


def _name(name: str) -> Text:
    return Text(name, chinese(name).replace(": ", "："))


def _sections(results: Results, tuning: Tuning) -> Iterator[Section]:
    if results.primary:
        yield _primary(results.primary, paired_t=results.study.paired_t)
    for place, measure in enumerate(results.measures()):
        yield _arms(results, measure, first=place == 0)
    yield Section(None, note=_HOW_TO_READ)
    if results.others:
        yield _others(results.others)
    yield from _traces(results)
    if corruptions := _corruptions(results):
        yield Section(
            Text("By kind of corruption", "按退化类型"),
            tables=corruptions,
            note=Text(
                "Accuracy in percent, mean over seeds and severities.",
                "准确率（%），对种子与强度取平均。",
            ),
        )
    if controls(results):
        yield _statistics(results)
    if tuning:
        yield _tuning(tuning)


def _difference(result: Compared) -> list[Cell]:
    found = result.difference
    if found is None:
        return ["0", _NOT_RUN, ""]
    return [str(len(found.estimate.values)), bracketed(found.estimate), p_value(found.p)]


def _primary(results: Sequence[Compared], *, paired_t: bool) -> Section:
    rows = []
    for result in results:
        of = result.comparison
        pair, where = f"{of.treatment} − {of.control}", of.group
        both = Text(f"{pair} ({where})", chinese(f"{pair}（{where}）")) if where else _name(pair)
        adjusted = p_value(result.adjusted) if result.difference else ""
        rows.append([of.name, both, *_difference(result), adjusted])
    p = Text("p, t test", "p（t 检验）") if paired_t else _SIGN_FLIP
    difference = Text("difference", "差值")
    head = (Text("measure", "指标"), difference, _SEEDS, _POINTS, p, Text("p, Holm", "p（Holm）"))
    return Section(
        Text("Primary comparisons", "主要比较"),
        tables=[Table("primary", head, rows, names=2)],
        note=_PAIRED_T if paired_t else _EXACT,
    )


_EXACT: Final = Text(
    "Named before the runs. Brackets: 95 % t interval of the mean paired difference. p: sign-flip "
    "test, two-sided and exact up to 20 seeds, then adjusted by Holm's method for the number of "
    "primary comparisons.",
    "这些比较在运行之前就已指定。方括号：配对差均值的 95% t 区间。"
    "p：双侧符号翻转检验（不超过 20 个种子时为精确检验），再按主要比较的个数用 Holm 法校正。",
)
_PAIRED_T: Final = Text(
    "Named before the runs. Brackets: 95 % t interval of the mean paired difference. p: paired t "
    "test, two-sided, then adjusted by Holm's method for the number of primary comparisons.",
    "这些比较在运行之前就已指定。方括号：配对差均值的 95% t 区间。"
    "p：双侧配对 t 检验，再按主要比较的个数用 Holm 法校正。",
)
_HOW_TO_READ: Final = Text(
    "“±” and brackets: 95 % t intervals over seeds. “Minus baseline”: the mean difference from the "
    "baseline of the group with the same seed. p: exact two-sided sign-flip test, not adjusted. "
    "Apart from the primary comparisons everything here is exploratory. An interval that contains "
    "0 means that no difference was detected, not that there is none. “n/a”: one seed, or seeds "
    "without any spread, give no interval.",
    "“±”与方括号：对种子的 95% t 区间。“减去基线”：与本组基线同一种子之差的均值。"
    "p：精确的双侧符号翻转检验，未校正。除主要比较外，此处一切均为探索性。"
    "区间包含 0 表示没有检测到差异，并不表示没有差异。“n/a”：只有一个种子，或各种子之间没有差异，"
    "给不出区间。",
)


def _arms(results: Results, measure: str, *, first: bool) -> Section:
    seeds, rows = len(results.study.seeds), []
    for result in (*results.totals, *results.arms):
        found, gain = result.accuracy.get(measure), result.gain.get(measure)
        count = len(found.values) if found else 0
        row: list[Cell] = [_name(result.arm.group), _name(result.arm.label)]
        row += [f"{count}/{seeds * (len(found.blocks) or 1) if found else seeds}"]
        row += [with_margin(found)]
        row += [bracketed(gain.estimate), p_value(gain.p)] if gain else ["", ""]
        rows.append(row)
    accuracy = Text("accuracy, %", "准确率，%")
    head = (_GROUP, _ARM, _SEEDS, accuracy, Text("minus baseline, points", "减去基线，百分点"), "p")
    words = MEASURES[measure]
    return Section(
        Text("All arms", "全部实验组") if first else None,
        figure=(measure, lambda narrow: study_figure(results, measure, narrow=narrow)),
        caption=Text(
            f"{words.en}: each arm's accuracy in percent and, beside or below it, its difference "
            "from the baseline of its group, seed by seed, in percentage points; the line is at "
            "zero. Small marks are the seeds, the large mark is their mean and the bar its 95 % t "
            "interval. Blue squares are baselines. Each group has its own scale.",
            f"{words.zh}：每个实验组的准确率（%），旁边或下方是与本组基线同一种子的差值（百分点），"
            "竖线为零。小标记是各个种子，大标记是其均值，横线是均值的 95% t 区间。"
            "蓝色方块是基线。各组的刻度不同。",
        ),
        tables=[Table(f"arms-{measure}", head, rows, names=2)],
    )


def _others(results: Sequence[Compared]) -> Section:
    rows = []
    for result in results:
        name, group = result.comparison.name, result.comparison.group
        if group:
            name = Text(f"{name.en} ({group})", f"{name.zh}（{chinese(group)}）")
        rows.append([name, *_difference(result)])
    head = (Text("exploratory", "探索性"), _SEEDS, _POINTS, _SIGN_FLIP)
    return Section(Text("Further comparisons", "其他比较"), tables=[Table("others", head, rows)])


def _traces(results: Results) -> Iterator[Section]:
    for name, (traced, title, caption) in _TRACED.items():
        if any(traced.values(record) for record in results.records):
            yield Section(title, (name, partial(_traced, results, traced)), caption)


def _traced(results: Results, traced: Traced, narrow: bool) -> Figure:
    return traced_figure(results, traced, narrow=narrow)


def _corruptions(results: Results) -> list[Table]:
    """A table for every group and kind of statistics, where there are several kinds."""
    pairs = [(r.arm.group, name) for r in results.arms for name in r.statistics]
    tables: list[Table] = []
    for group, name in dict.fromkeys(pairs):
        arms = [r for r in results.arms if r.arm.group == group and name in r.statistics]
        conditions = arms[0].records[next(iter(arms[0].records))].config.tested_on()
        kinds = list(dict.fromkeys(c.partition("/")[0] for c in conditions if c != CLEAN))
        if CLEAN in conditions and len(kinds) > 1:
            tested = STATISTICS[name]
            clean, every = Text("none", "无退化"), Text("all kinds", "全部类型")
            tables.append(
                Table(
                    f"corruptions-{len(tables)}",
                    [_ARM, clean, every, *(KINDS[kind] for kind in kinds)],
                    [_by_kind(result, name, kinds) for result in arms],
                    title=Text(f"{group}: {tested.en}", f"{chinese(group)}：{tested.zh}"),
                    kind="corruptions",
                )
            )
    return tables


def _by_kind(result: ArmResult, statistics: str, kinds: Sequence[str]) -> list[Cell]:
    runs = [r.shifted[statistics] for r in result.records.values() if statistics in r.shifted]
    clean = estimate([run[CLEAN] for run in runs])
    mean = estimate([mean_corruption_accuracy(run) for run in runs])

    def over_severities(run: dict[str, float], kind: str) -> float:
        return float(np.mean([v for name, v in run.items() if name.partition("/")[0] == kind]))

    of_kinds = [estimate([over_severities(run, kind) for run in runs]).mean for kind in kinds]
    return [_name(result.arm.label), with_margin(clean), with_margin(mean), *map(percent, of_kinds)]


def _statistics(results: Results) -> Section:
    rows: list[Row] = []
    for control in controls(results):
        arm, gain = control.result.arm, control.gain
        name = Text(f"{arm.label} ({arm.group})", chinese(f"{arm.label}（{arm.group}）"))
        cells = [with_margin(control.accuracy), bracketed(gain.estimate), p_value(gain.p)]
        count = str(len(gain.estimate.values))
        rows.append([name, STATISTICS[control.statistics], count, *cells])
    accuracy, gain_of = Text("accuracy, %", "准确率，%"), Text("gain, points", "增益，百分点")
    head = (_ARM, Text("tested with", "测试时使用"), _SEEDS, accuracy, gain_of, "p")
    return Section(
        Text(
            "Other statistics against those of training", "改用其他统计量与使用训练时的统计量之差"
        ),
        tables=[Table("controls", head, rows, names=2)],
        note=MEASURES[results.shifted],
    )


def _tuning(tuning: Tuning) -> Section:
    rows: list[Row] = []
    for row, best in tuning:
        of = row.config
        batch = f"normalisation batch {of.norm_batch}" if of.norm_batch else ""
        frozen = "frozen statistics" if of.frozen else ""
        without = f"without {of.target}" if of.target else ""
        norm = ", ".join(filter(None, (of.norm, batch, frozen, without)))
        lr = str(of.lr) if of.calibration_rate == 1 else f"{of.lr} × {of.calibration_rate:g}"
        rows.append([of.model, _name(norm), lr, percent(row.accuracy), "✓" if best else ""])
    held_out, chosen = Text("held-out accuracy, %", "留出准确率，%"), Text("chosen", "选用")
    head = (Text("network", "网络"), Text("norm", "归一化"), Text("learning rate", "学习率"))
    return Section(
        Text("How the learning rates were chosen", "学习率的选择"),
        tables=[Table("tuning", (*head, held_out, chosen), rows, names=2)],
        note=Text(
            "Mean accuracy on a held-out part of the training images, with seeds that no reported "
            "run has; each norm has its best. After ×: the rate of RBN's calibration in multiples.",
            "在留出的一部分训练图像上的平均准确率，所用种子与所报告的运行不同；"
            "每种归一化取其最优者。×之后：RBN 校准参数的学习率所乘的倍数。",
        ),
        folded=True,
    )


def _failures(results: Results) -> Section:
    rows: list[Row] = [
        [_name(f"{result.arm.group}: {result.arm.label}"), str(seed), failure.error]
        for result in results.arms
        for seed, failure in result.failures.items()
    ]
    head = (_ARM, Text("seed", "种子"), Text("error", "错误"))
    return Section(Text("Failed runs", "失败的运行"), tables=[Table("failures", head, rows)])


def _run(results: Results) -> Iterator[Section]:
    study = results.study
    if not study.arms:
        return
    common, own = settings(study.arms)
    named = {_name(f"{a.group}: {a.label}"): of for a, of in zip(study.arms, own, strict=True)}
    named[Text("all arms", "全部实验组")] = common
    rows: list[Row] = [
        [name, ", ".join(f"{key}={value}" for key, value in of.items())]
        for name, of in named.items()
    ]
    seeds = ", ".join(map(str, study.seeds))
    done = Text("What was run", "运行内容"), Text("What is to be run", "待运行内容")
    yield Section(done[not results.records], lines=[Text(f"Seeds: {seeds}", f"种子：{seeds}")])
    yield Section(
        Text("Settings of every arm", "各实验组的设置"),
        tables=[Table("settings", (), rows)],
        folded=bool(results.records),
    )


def settings(arms: Sequence[Arm]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings that all arms share, and for every arm the others; the seed is neither."""
    configs = [{k: v for k, v in asdict(arm.config).items() if k != "seed"} for arm in arms]
    common = {k: v for k, v in configs[0].items() if all(config[k] == v for config in configs)}
    own = [{k: v for k, v in config.items() if k not in common} for config in configs]
    return common, own
