"""From records to the numbers that tables and figures show."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rbnorm_lab.records import Record
from rbnorm_lab.statistics import Estimate, estimate
from rbnorm_lab.text import Text

BASELINE = "bn"


@dataclass(frozen=True)
class Row:
    """One norm at one batch size.

    Attributes:
        batch_size: The batch size.
        norm: The norm.
        accuracy: Test accuracy over seeds.
        gain: Accuracy minus that of BatchNorm with the same seed, over seeds; None for BatchNorm
            itself and where no seed has both.
        seconds: Mean duration of a run.
    """

    batch_size: int
    norm: str
    accuracy: Estimate
    gain: Estimate | None
    seconds: float


def summarise(records: Sequence[Record]) -> list[Row]:
    """One row for every batch size and norm, in order of appearance."""
    groups: dict[tuple[int, str], dict[int, Record]] = defaultdict(dict)
    for record in records:
        groups[record.config.batch_size, record.config.norm][record.config.seed] = record
    rows = []
    for (batch_size, norm), runs in groups.items():
        baseline = groups.get((batch_size, BASELINE), {})
        gains = [
            run.accuracy - baseline[seed].accuracy for seed, run in runs.items() if seed in baseline
        ]
        rows.append(
            Row(
                batch_size,
                norm,
                estimate([run.accuracy for run in runs.values()]),
                estimate(gains) if gains and norm != BASELINE else None,
                float(np.mean([run.seconds for run in runs.values()])),
            )
        )
    return sorted(rows, key=lambda row: -row.batch_size)


def signed(value: float) -> str:
    """A number with its sign and two digits, the minus a true one."""
    return f"{value:+.2f}".replace("-", "−")


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return signed(100 * value)


def with_margin(estimate: Estimate, digits: int = 2) -> str:
    """A share in percent, with half the width of its interval."""
    margin = "n/a"
    if estimate.interval is not None:
        margin = f"{100 * (estimate.interval[1] - estimate.mean):.{digits}f}"
    return f"{100 * estimate.mean:.{digits}f} ± {margin}"


def with_interval(estimate: Estimate) -> str:
    """A difference of shares in percentage points, with its interval."""
    return f"{points(estimate.mean)} ({_interval(estimate)})"


def p_value(p: float | None) -> str:
    """A p value, or n/a."""
    if p is None:
        return "n/a"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _interval(estimate: Estimate) -> str:
    return "n/a" if estimate.interval is None else " to ".join(map(points, estimate.interval))


def answer(rows: Sequence[Row], norm: str = "rbn") -> Text:
    """What the rows say about ``norm`` against BatchNorm, in one sentence."""
    clauses = [_clause(row) for row in rows if row.norm == norm and row.gain]
    if not clauses:
        return Text(
            f"This study has no runs of both {norm} and {BASELINE}, so it cannot compare them.",
            f"这项比较没有同时包含 {norm} 和 {BASELINE} 的运行，无法比较两者。",
        )
    en, zh = "; ".join(c.en for c in clauses), "；".join(c.zh for c in clauses)
    return Text(f"On held-out images, {en}.", f"在测试图像上，{zh}。")


def _clause(row: Row) -> Text:
    gain = row.gain
    assert gain is not None
    where, there = f"at batch size {row.batch_size}", f"批大小为 {row.batch_size} 时"
    difference, by = f"{points(gain.mean)} percentage points", f"{points(gain.mean)} 个百分点"
    if gain.interval is None:
        one = len(gain.values) == 1
        why = "one seed" if one else "seeds that all differ equally"
        because = "只有一个种子" if one else "各种子之差都相同"
        return Text(
            f"{where} {row.norm} minus BN is {difference}, and {why} cannot tell it from chance",
            f"{there} {row.norm} 与 BN 相差 {by}，{because}，无法判断是否出于偶然",
        )
    seeds = len(gain.values)
    evidence = f"{difference}, 95 % interval {_interval(gain)}, {seeds} seeds"
    shown = f"{by}，95% 区间 {_interval(gain).replace(' to ', ' 到 ')}，{seeds} 个种子"
    if not gain.detectable:
        return Text(
            f"{where} there is no detectable difference between {row.norm} and BN ({evidence})",
            f"{there} {row.norm} 与 BN 没有可检测的差异（{shown}）",
        )
    more = gain.mean > 0
    return Text(
        f"{where} {row.norm} is {'more' if more else 'less'} accurate than BN ({evidence})",
        f"{there} {row.norm} 的准确率{'高于' if more else '低于'} BN（{shown}）",
    )
