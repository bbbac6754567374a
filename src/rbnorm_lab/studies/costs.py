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
from rbnorm_lab.studies.answer import SUBJECT
from rbnorm_lab.studies.arms import Rate, Settings, Study
from rbnorm_lab.text import Text

COST: Final = "cost"
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


def measure_costs(out: Path) -> None:
    """Measure the rows on the CPU, as :func:`bench_command` would.

    Raises:
        UsageError: The folder cannot be used.
    """
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


def cost(settings: Settings, rate: Rate) -> Study:
    """What the norms cost, from the benchmark's rows."""
    return Study(
        COST,
        Text("What the norms cost", "各种归一化的代价"),
        Text(
            "What does each norm cost in parameters, operations, time and memory?",
            "各种归一化在参数量、计算量、时间和显存（内存）上的代价是多少？",
        ),
        (
            Text(
                "Times and their ratios hold for the machine named below, for one small network "
                "and for 32-bit floating-point numbers; in larger networks normalisation has "
                "another share of the work.",
                "时间及其比值只适用于下面所列的机器、这一个小网络和 32 位浮点数；"
                "在更大的网络中，归一化所占的比重不同。",
            ),
            Text(
                "The ranges are quartiles of the rounds of one process: they show how steady the "
                "machine was, and are no confidence intervals.",
                "范围是同一进程各轮计时的四分位数：反映机器是否平稳，不是置信区间。",
            ),
            Text(
                "RBN runs on the backend named below, BatchNorm and GroupNorm on PyTorch's "
                "kernels; IEBN, BN+SE, FRN and EvoNorm-S0 consist of several operations, and "
                "kernels of their own would make them cheaper.",
                "RBN 使用下面所列的后端，BatchNorm 与 GroupNorm 使用 PyTorch 的内核；"
                "IEBN、BN+SE、FRN 和 EvoNorm-S0 由多个运算组成，若有专门的内核，代价会更低。",
            ),
        ),
        (),
        (),
    )
