"""What reaches RBN's parameters in the first steps, by initial gate."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from rbnorm_lab.gradients import PARAMETERS
from rbnorm_lab.norms import canonical_norm
from rbnorm_lab.studies import limits, words
from rbnorm_lab.studies.results import Results
from rbnorm_lab.studies.study import Arm, Rate, Settings, Study
from rbnorm_lab.templates import Cell, Section, Table
from rbnorm_lab.text import Text

COMMAND: Final = "study gradients"
GATES: Final = (0.0, 1.0, 2.0, 4.0)
REFERENCE: Final = 1.0
words.PHRASES.update({", gamma compensated": "，补偿 γ", "first steps": "最初几步"})
Ratios = dict[tuple[float, bool], dict[str, float]]


def settings_of(options: Mapping[str, Any]) -> Settings:
    """What the options of the command ask for.

    Raises:
        UsageError: A value is out of range.
    """
    steps = {"epochs": 1, "trace": False, "gradient_steps": options["steps"]}
    return Settings.of(options, norm="rbn", **steps)


def study(settings: Settings, rate: Rate) -> Study:
    """Every initial gate, with gamma compensated and not."""
    arms = [
        Arm("first steps", label(w_b, compensated), settings.config(norm, settings.run.lr), None)
        for compensated in (False, True)
        for w_b in GATES
        for norm in [canonical_norm(f"rbn:scale_bias_init={w_b:g}" + ":preserve=yes" * compensated)]
    ]
    return Study(
        "gradients",
        Text("Gradients of the first steps", "最初几步的梯度"),
        Text(
            "What reaches RBN's parameters in the first steps, from each initial gate?",
            "从不同的初始门控出发，最初几步到达 RBN 各参数的梯度有多大？",
        ),
        (limits.SMALL_STUDY, limits.SEEDS_ONLY),
        tuple(arms),
        settings.all_seeds,
        clauses=clauses,
        sections=sections,
    )


def label(w_b: float, compensated: bool) -> str:
    """An arm's name."""
    return f"w_b = {w_b:g}" + ", gamma compensated" * compensated


def ratios(results: Results, step: int = 0) -> Ratios:
    """By initial w_b and compensation each gradient over that at w_b = 1, mean over the seeds.

    Args:
        results: What was run.
        step: Of which step; -1 for the last.
    """
    by_label = {result.arm.label: result.records for result in results.arms}
    found: Ratios = {}
    for compensated in (False, True):
        base = by_label[label(REFERENCE, compensated)]
        for w_b in GATES:
            own = by_label[label(w_b, compensated)]
            if seeds := own.keys() & base.keys():
                found[w_b, compensated] = {
                    name: fmean(
                        own[s].gradients[name][step] / base[s].gradients[name][step] for s in seeds
                    )
                    for name in PARAMETERS
                }
    return found


def factor(w_b: float) -> float:
    """R'(w_b) / R(w_b) of the sigmoid, over that at w_b = 1."""
    return (1 + math.exp(REFERENCE)) / (1 + math.exp(w_b))


def clauses(results: Results) -> Sequence[Text]:
    """The finding in one sentence."""
    first, last = ratios(results), ratios(results, -1)
    if not all((w_b, True) in first for w_b in GATES):
        return ()
    steps = results.records[0].config.gradient_steps

    def of(w_b: float) -> str:
        values = first[w_b, True]
        return f"{values['w_b']:.2f} ({factor(w_b):.2f}, {last[w_b, True]['w_b']:.2f})"

    en = ", ".join(f"{of(w_b)} from w_b = {w_b:g}" for w_b in GATES if w_b != REFERENCE)
    zh = "，".join(f"w_b = {w_b:g} 时为 {of(w_b)}" for w_b in GATES if w_b != REFERENCE)
    w_m = [first[w_b, True]["w_m"] for w_b in GATES]
    span = f"{min(w_m):.2f}–{max(w_m):.2f}"
    said = Text(
        f"With gamma compensated, w_b's first gradient over that from w_b = 1 (R'/R by the "
        f"formula, measured at step {steps}) is {en}; w_m's is {span}",
        f"补偿 γ 时，w_b 的首步梯度与 w_b = 1 时之比（括号内：按公式 R'/R 之比，第 {steps} "
        f"步的实测值）：{zh}；w_m 的比值为 {span}",
    )
    return [said]


def sections(results: Results) -> Sequence[Section]:
    """The ratios of the first step."""
    rows: list[list[Cell]] = [
        [
            Text(label(*of), words.chinese(label(*of))),
            f"{factor(of[0]):.3f}",
            *(f"{values[name]:.3f}" for name in PARAMETERS),
        ]
        for of, values in ratios(results).items()
    ]
    title = Text("First step: gradient over that at w_b = 1", "首步：梯度与 w_b = 1 时之比")
    table = Table("gradients", (Text("from", "初值"), "R'/R", *PARAMETERS), rows)
    return [Section(title, tables=[table])] if rows else []
