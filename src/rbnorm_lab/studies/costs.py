"""What the norms cost: the study, and its numbers from the benchmark's rows."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from rbnorm_lab.bench.cases import BASELINE, Row, cases
from rbnorm_lab.bench.command import measure_parts
from rbnorm_lab.bench.measure import Effort
from rbnorm_lab.bench.rows import MACHINE, ROWS, load
from rbnorm_lab.errors import UsageError
from rbnorm_lab.studies.sentences import SUBJECT
from rbnorm_lab.text import Text

PART: Final = "norms"
"""The part of the benchmark that the study shows."""
RATIOS: Final = {
    "step": Text("training step", "训练步耗时"),
    "inference": Text("inference", "推理耗时"),
    "saved": Text("kept for backward", "为反向传播保存"),
    "peak": Text("peak memory", "峰值内存"),
}
"""What is compared with BatchNorm: two times and two sizes."""


class Ratio(NamedTuple):
    """A cost over BatchNorm's.

    Attributes:
        value: The ratio; of times, that of the medians.
        range: Of times, both quartiles over BatchNorm's median.
    """

    value: float
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class NormCost:
    """What a network costs with one norm.

    Attributes:
        norm: Name of the candidate in the rows.
        parameters: Numbers in its parameters.
        buffers: Numbers in its buffers.
        flops: Floating-point operations of a training step in convolutions and matrix products.
        more_parameters: How many parameters more than with BatchNorm.
        ratios: By the names of :data:`RATIOS`; memory is that of a training step.
    """

    norm: str
    parameters: int
    buffers: int
    flops: int
    more_parameters: int
    ratios: dict[str, Ratio]

    @property
    def more_share(self) -> float:
        """The same as a share of BatchNorm's."""
        return self.more_parameters / (self.parameters - self.more_parameters)


@dataclass(frozen=True)
class Costs:
    """All that the page shows.

    Attributes:
        norms: The norms, the cheapest training step first.
        step: BatchNorm's training step.
        inference: BatchNorm's inference.
        machine: Where, when and with which versions the rows were measured.
    """

    norms: tuple[NormCost, ...]
    step: Row
    inference: Row
    machine: dict[str, Any]

    def of(self, norm: str) -> NormCost:
        """The cost of the norm of this name."""
        return {cost.norm: cost for cost in self.norms}[norm]


def bench_folder(out: Path) -> Path:
    """Where the rows are, in the folder of the studies."""
    return out / "bench"


def bench_command(out: Path, device: str = "cpu") -> str:
    """The command that measures the rows."""
    on = [] if device == "cpu" else ["--device", device]
    return shlex.join(["rbnorm", "bench", "--parts", PART, *on, "--out", str(bench_folder(out))])


def measure_missing(out: Path) -> None:
    """Measure the rows on the CPU, as :func:`bench_command` would, unless there are any.

    Raises:
        UsageError: The folder cannot be used.
    """
    if load_costs(out) is None:
        measure_parts([PART], Effort.repeats, "cpu", bench_folder(out))


def load_costs(out: Path) -> Costs | None:
    """The numbers of the study, or None where the part was not measured.

    Raises:
        UsageError: The rows cannot be read, or miss some of what a measurement gives.
    """
    folder = bench_folder(out)
    rows, machine = load(folder)
    rows = [row for row in rows if row.part == PART]
    if not rows:
        return None
    try:
        costs = _costs(rows, machine[PART])
        costs.of(SUBJECT)  # the answer is about it
    except (LookupError, TypeError, ZeroDivisionError) as error:
        raise UsageError(
            f"{ROWS} and {MACHINE} in {folder} have only some of the part {PART} "
            f"({type(error).__name__}: {error}): measure it again with {bench_command(out)}"
        ) from error
    return costs


def _costs(rows: Sequence[Row], machine: dict[str, Any]) -> Costs:
    by_mode = {by_candidate[BASELINE].mode: by_candidate for by_candidate in cases(rows)}
    steps, inferences = by_mode["training"], by_mode["inference"]
    base = steps[BASELINE], inferences[BASELINE]
    norms = [_norm_cost(step, inferences[norm], *base) for norm, step in steps.items()]
    norms.sort(key=lambda cost: cost.ratios["step"].value)
    return Costs(tuple(norms), *base, dict(machine))


def _norm_cost(step: Row, inference: Row, base_step: Row, base_inference: Row) -> NormCost:
    parameters, buffers, flops = (_count(step, n) for n in ("parameters", "buffers", "flops"))
    return NormCost(
        step.candidate,
        parameters,
        buffers,
        flops,
        parameters - _count(base_step, "parameters"),
        {
            "step": _times(step, base_step),
            "inference": _times(inference, base_inference),
            "saved": Ratio(_count(step, "saved_bytes") / _count(base_step, "saved_bytes")),
            "peak": Ratio(_count(step, "peak_bytes") / _count(base_step, "peak_bytes")),
        },
    )


def _times(row: Row, base: Row) -> Ratio:
    median = base.median_s
    return Ratio(row.median_s / median, (row.q1_s / median, row.q3_s / median))


def _count(row: Row, name: str) -> int:
    count = getattr(row, name)
    if not isinstance(count, int):
        raise TypeError(f"{name} of {row.candidate} is {count}")
    return count
