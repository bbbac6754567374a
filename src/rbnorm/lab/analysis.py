"""From records to the numbers that tables and figures show."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rbnorm.lab.records import Record
from rbnorm.lab.statistics import Estimate, estimate

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


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.2f}".replace("-", "−")


def with_margin(estimate: Estimate) -> str:
    """A share in percent, with half the width of its interval."""
    margin = (
        "n/a"
        if estimate.interval is None
        else f"{100 * (estimate.interval[1] - estimate.mean):.2f}"
    )
    return f"{100 * estimate.mean:.2f} ± {margin}"


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


def answer(rows: Sequence[Row], norm: str = "rbn") -> str:
    """What the rows say about ``norm`` against BatchNorm, in one sentence."""
    clauses = [_clause(row) for row in rows if row.norm == norm and row.gain]
    if not clauses:
        return f"This study has no runs of both {norm} and {BASELINE}, so it cannot compare them."
    return f"On held-out images, {'; '.join(clauses)}."


def _clause(row: Row) -> str:
    gain = row.gain
    assert gain is not None
    where = f"at batch size {row.batch_size}"
    difference = f"{points(gain.mean)} percentage points"
    if gain.interval is None:
        why = "one seed" if len(gain.values) == 1 else "seeds that all differ equally"
        return f"{where} {row.norm} minus BN is {difference}, and {why} cannot tell it from chance"
    evidence = f"95 % interval {_interval(gain)}, {len(gain.values)} seeds"
    if not gain.detectable:
        return (
            f"{where} there is no detectable difference between {row.norm} and BN "
            f"({difference}, {evidence})"
        )
    verdict = "more" if gain.mean > 0 else "less"
    return f"{where} {row.norm} is {verdict} accurate than BN ({difference}, {evidence})"
