"""What a study found, in one sentence."""

from collections.abc import Sequence
from typing import Final

from rbnorm_lab.statistics import Estimate
from rbnorm_lab.studies.results import ArmResult, Compared, Control, Difference, Results, controls
from rbnorm_lab.studies.words import MEASURES, STATISTICS, chinese, close
from rbnorm_lab.text import Text, bracketed, interval, joined, p_value, points

NOT_RUN: Final = Text("Not run.", "未运行。")
SUBJECT: Final = "rbn"
"""The norm that the studies are about: where not all are named, it is."""

_MOST_NAMED: Final = 4


def answer(results: Results) -> Text:
    """The answer to the study's question, with intervals, in one sentence.

    Primary comparisons are judged by Holm's adjusted p values. A study without them is exploratory:
    there a difference counts as detected where its interval excludes zero.
    """
    study = results.study
    clauses = study.clauses(results)
    if not (clauses or results.records):
        return NOT_RUN
    if not clauses:
        clauses = _clauses(results) or [
            Text("no seed has both runs of a comparison", "还没有任何种子完成一对可比较的运行")
        ]
    found, start = joined(clauses), _progress(results)
    said = start.en + found.en
    return Text(f"{said[:1].upper()}{said[1:]}.", close(f"{start.zh}{found.zh}。"))


def _clauses(results: Results) -> list[Text]:
    study = results.study
    several = len(results.groups()) > 1
    named = [clause for other in results.others if (clause := _other(other, several))]
    if study.blocks:  # short ones, which need to be called exploratory once
        named = [joined(named)] if named else []
    if study.primary:
        return [_primary(result) for result in results.primary] + [
            Text(f"control (exploratory): {clause.en}", f"对照（探索性）：{clause.zh}")
            for clause in named
        ]
    of_arms = [c for m in results.measures() if (c := _exploratory(results.arms, m))]
    tested = controls(results) if study.controls else []
    of_controls = [_control(c) for c in tested if c.result.arm.baseline is None]
    return (named[:_MOST_NAMED] or of_arms) + of_controls


def _progress(results: Results) -> Text:
    done, seeds, failed = results.complete_seeds, len(results.study.seeds), results.failed
    if done == seeds and not failed:
        return Text("", "")
    return Text(
        f"{done} of {seeds} seeds are complete in every arm (failed runs: {failed}): ",
        f"{seeds} 个种子中有 {done} 个在所有实验组都已完成（失败的运行：{failed} 次）：",
    )


def _primary(result: Compared) -> Text:
    name, difference = result.comparison.name, result.difference
    if difference is None:
        return Text(f"{name.en}: not run", f"{name.zh}：未运行")
    treatment, control = result.comparison.sides
    evidence = evidence_of(difference)
    p = p_value(result.adjusted)
    en = f"({evidence.en}, Holm-adjusted p = {p})"
    zh = f"（{evidence.zh}，Holm 校正后 p = {p}）"
    if not result.detectable and not result.resolvable:
        said = Text(
            f"too few seeds to tell {treatment.en} from {control.en}",
            f"种子太少，无法区分{treatment.zh}与{control.zh}",
        )
    else:
        said = verdict(treatment, control, difference.estimate, detectable=result.detectable)
    return Text(f"{name.en}: {said.en} {en}", f"{name.zh}：{said.zh}{zh}")


def _other(result: Compared, several_groups: bool) -> Text | None:
    comparison, difference = result.comparison, result.difference
    if difference is None:
        return None
    estimate, measure = difference.estimate, MEASURES[comparison.measure]
    if comparison.group is None:  # all have the measure of the primary comparison
        treatment, control = comparison.sides
        return Text(
            f"{treatment.en} minus {control.en}: {bracketed(estimate)}",
            f"{treatment.zh}减{control.zh}：{bracketed(estimate)}",
        )
    said = verdict(*comparison.sides, estimate)
    evidence = evidence_of(difference)
    group = comparison.group if several_groups else None
    en, zh = (f"{group}, ", f"{chinese(group)}，") if group else ("", "")
    return Text(
        f"{en}{measure.en}: {said.en} ({evidence.en})",
        f"{zh}{measure.zh}：{said.zh}（{evidence.zh}）",
    )


def verdict(
    treatment: Text, control: Text, found: Estimate, *, detectable: bool | None = None
) -> Text:
    """Which of two arms is more accurate, by their difference, if that is detectable.

    Args:
        treatment: An arm in words.
        control: The other.
        found: The first minus the second.
        detectable: Whether there is a difference; by default, whether its interval excludes zero.
    """
    more = found.mean > 0
    if not (found.detectable if detectable is None else detectable):
        return Text(
            f"no detectable difference between {treatment.en} and {control.en}",
            f"{treatment.zh}与{control.zh}之间没有可检测的差异",
        )
    return Text(
        f"{treatment.en} is {'more' if more else 'less'} accurate than {control.en}",
        f"{treatment.zh}比{control.zh}{'更高' if more else '更低'}",
    )


def evidence_of(difference: Difference) -> Text:
    """A difference with its interval and the number of its pairs."""
    estimate = difference.estimate
    mean, within, seeds = points(estimate.mean), interval(estimate), len(estimate.values)
    if blocks := len(estimate.blocks):
        of = Text(f"{seeds} pairs in {blocks} targets", f"{blocks} 个目标域共 {seeds} 对")
    else:
        of = Text(f"{seeds} seed{'s' * (seeds != 1)}", f"{seeds} 个种子")
    return Text(
        f"{mean} points, 95 % interval {within}, {of.en}",
        f"{mean} 个百分点，95% 区间 {within}，{of.zh}",
    )


def _exploratory(arms: Sequence[ArmResult], measure: str) -> Text | None:
    """Which arms differ from their baselines, and how large the other differences could be."""
    gains = [(result, result.gain[measure].estimate) for result in arms if measure in result.gain]
    if not gains:
        return None
    several = len({result.arm.group for result in arms}) > 1
    gains.sort(key=lambda gain: (gain[0].arm.config.norm != SUBJECT, -abs(gain[1].mean)))
    more: list[str] = []
    less: list[str] = []
    same: list[str] = []
    for result, found in gains:
        kind = (more if found.mean > 0 else less) if found.detectable else same
        group = f"{result.arm.group}: " if several else ""
        kind.append(f"{group}{result.arm.label} {bracketed(found)}")
    parts = [
        _part(more, "more accurate than the baseline", "高于基线"),
        _part(less, "less accurate", "低于基线"),
        _part(same, "no detectable difference", "没有可检测的差异"),
    ]
    said = joined([part for part in parts if part], ", ", "，")
    words = MEASURES[measure]
    return Text(
        f"{words.en} (exploratory, points with 95 % intervals): {said.en}",
        f"{words.zh}（探索性，百分点及 95% 区间）：{said.zh}",
    )


def _part(items: Sequence[str], en: str, zh: str) -> Text | None:
    if not items:
        return None
    shown, rest = items[:_MOST_NAMED], len(items) - _MOST_NAMED
    named = chinese("；".join(shown))
    return Text(
        f"{en}: {len(items)} ({'; '.join(shown)}{f'; and {rest} more' if rest > 0 else ''})",
        f"{zh}：{len(items)} 个（{named}{f'；另有 {rest} 个' if rest > 0 else ''}）",
    )


def _control(control: Control) -> Text:
    name, words = control.result.arm.label, STATISTICS[control.statistics]
    evidence = evidence_of(control.gain)
    return Text(
        f"{name} with {words.en} against {name} as trained, under corruptions: {evidence.en}",
        f"图像退化时，{chinese(name)} 由训练时的统计量改用{words.zh}，变化为 {evidence.zh}",
    )
