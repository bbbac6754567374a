"""What the norms cost, from the benchmark's rows in the folder ``bench`` beside the records."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rbnorm_lab.bench.cases import BASELINE, Row, cases
from rbnorm_lab.bench.networks import SMALL_MODEL
from rbnorm_lab.bench.rows import MACHINE, ROWS, load
from rbnorm_lab.errors import UsageError
from rbnorm_lab.studies.figures import Ratio, ratios_figure
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.results import Results
from rbnorm_lab.studies.sentences import NOT_RUN, SUBJECT
from rbnorm_lab.studies.study import Settings, Study
from rbnorm_lab.templates import Section, Table
from rbnorm_lab.text import Text

PART: Final = "norms"
"""The part of the benchmark that the study shows."""
RATIOS: Final = {
    "step": Text("training step", "训练步耗时"),
    "inference": Text("inference", "推理耗时"),
    "saved_bytes": Text("kept for backward", "为反向传播保存"),
    "peak_bytes": Text("peak memory", "峰值内存"),
}
"""What is compared with BatchNorm: two times, and two sizes of a training step."""


@dataclass(frozen=True)
class Costs:
    """The rows by norm, the cheapest training step first.

    Attributes:
        steps: Training steps.
        inferences: The same networks' inference.
        machine: Where, when and with which versions they were measured.
    """

    steps: dict[str, Row]
    inferences: dict[str, Row]
    machine: dict[str, Any]

    def ratios(self, norm: str) -> dict[str, Ratio]:
        """By the names of :data:`RATIOS` a cost over BatchNorm's."""
        sizes = list(RATIOS)[2:]
        ours, base = self.steps[norm], self.steps[BASELINE]
        return {
            "step": _times(ours, base),
            "inference": _times(self.inferences[norm], self.inferences[BASELINE]),
            **{name: (_count(ours, name) / _count(base, name), None) for name in sizes},
        }

    def cells(self, norm: str) -> list[str]:
        """Its name, its counts and its ratios, as a table has them."""
        counts = [_count(self.steps[norm], name) for name in ("parameters", "buffers", "flops")]
        parameters, buffers, flops = counts
        ratios = map(bracketed, self.ratios(norm).values())
        return [norm, f"{parameters:,}", f"{buffers:,}", f"{flops / 1e6:,.1f}", *ratios]


def load_costs(out: Path) -> Costs | None:
    """The rows in a folder of studies, or None where the part was not measured.

    Raises:
        UsageError: The rows cannot be read, or miss some of what a measurement gives.
    """
    rows, machine = load(out / "bench")
    rows = [row for row in rows if row.part == PART]
    if not rows:
        return None
    try:
        by_mode = {of[BASELINE].mode: of for of in cases(rows)}
        steps = sorted(by_mode["training"].items(), key=lambda one: one[1].median_s)
        costs = Costs(dict(steps), by_mode["inference"], machine[PART])
        for norm in (SUBJECT, *costs.steps):
            costs.cells(norm)
    except (LookupError, TypeError, ZeroDivisionError) as error:
        raise UsageError(
            f"{ROWS} and {MACHINE} in {out / 'bench'} have only some of the part {PART} "
            f"({type(error).__name__}: {error}): measure it again with {bench_command(out)}"
        ) from error
    return costs


def bench_command(out: Path, device: str = "cpu") -> str:
    """The command that measures the rows."""
    on = [] if device == "cpu" else ["--device", device]
    return shlex.join(["rbnorm", "bench", "--parts", PART, *on, "--out", str(out / "bench")])


def bracketed(ratio: Ratio) -> str:
    """A ratio with its range, where it has one."""
    value, within = ratio
    return f"{value:.2f}" + (f" [{within[0]:.2f}, {within[1]:.2f}]" if within else "")


def _times(row: Row, base: Row) -> Ratio:
    """Of the medians, with both quartiles over BatchNorm's median."""
    median = base.median_s
    return row.median_s / median, (row.q1_s / median, row.q3_s / median)


def _count(row: Row, name: str) -> int:
    return int(getattr(row, name))


def study(settings: Settings, rate: Rates) -> Study:
    """Nothing is trained: the page is drawn from the rows there are."""
    return Study(
        "cost",
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
        clauses=clauses,
        sections=sections,
    )


def clauses(results: Results) -> Sequence[Text]:
    """RBN's costs next to BatchNorm's, and whose training step costs least and most."""
    costs = load_costs(results.folder)
    if costs is None:
        return ()
    step, inference, saved, peak = map(bracketed, costs.ratios(SUBJECT).values())
    ours, base = (_count(costs.steps[norm], "parameters") for norm in (SUBJECT, BASELINE))
    more = f"{ours - base:,} ({(ours - base) / base:.1%})"
    least, *_, most = (f"{norm} ({costs.ratios(norm)['step'][0]:.2f})" for norm in costs.steps)
    return [
        Text(
            f"In {SMALL_MODEL}, a training step with RBN takes {step} times as long as with "
            f"BatchNorm and inference {inference} times (medians and quartiles), keeps {saved} "
            f"times as many bytes for the backward pass at {peak} times the peak memory, and adds "
            f"{more} parameters",
            f"在 {SMALL_MODEL} 中，与 BatchNorm 相比，RBN 的训练步耗时为 {step} 倍，推理耗时为 "
            f"{inference} 倍（中位数与四分位数），为反向传播保存的字节数为 {saved} 倍，峰值内存为 "
            f"{peak} 倍，参数增加 {more} 个",
        ),
        Text(
            f"the cheapest training step is that of {least}, the dearest that of {most}",
            f"训练步最省时的是 {least}，最费时的是 {most}",
        ),
    ]


def sections(results: Results) -> Sequence[Section]:
    """All norms, or the command that measures them."""
    costs = load_costs(results.folder)
    if costs is None:
        command = bench_command(results.folder)
        return [Section(NOT_RUN, lines=[Text(f"Measure it: {command}", f"测量命令：{command}")])]
    step, inference = costs.steps[BASELINE], costs.inferences[BASELINE]
    head = (Text("norm", "归一化"), Text("parameters", "参数"), Text("buffers", "缓冲区"), "MFLOP")
    ratios = {norm: costs.ratios(norm) for norm in costs.steps}
    drawn = {
        words.en: {norm: of[name] for norm, of in ratios.items()} for name, words in RATIOS.items()
    }
    machine = [[name, str(value or "unknown")] for name, value in costs.machine.items()]
    device = costs.machine.get("device", "cpu")
    measured = bench_command(results.folder, "cpu" if device == "cpu" else "cuda")
    saved, peak = ((getattr(step, name) or 0) / 1e6 for name in ("saved_bytes", "peak_bytes"))
    times = f"{1e3 * step.median_s:.1f}", f"{1e3 * inference.median_s:.1f}"
    setting = f"{step.size}, {step.dtype}, {step.layout}", step.threads, step.rounds
    all_norms = Section(
        Text("All norms", "全部归一化"),
        figure=("ratios", lambda narrow: ratios_figure(drawn, baseline=BASELINE, narrow=narrow)),
        caption=CAPTION,
        tables=[
            Table(
                "costs", (*head, *RATIOS.values()), list(map(costs.cells, ratios)), kind="wrapped"
            ),
            Table("machine", (), [*machine, [Text("measured by", "测量命令"), measured]]),
        ],
        note=Text(
            f"BatchNorm: {times[0]} ms for a training step, {times[1]} ms for inference, "
            f"{saved:.1f} MB kept, {peak:.1f} MB at most. Network {SMALL_MODEL}, noise of "
            f"{setting[0]}, threads: {setting[1]}, rounds: {setting[2]}. {NOTE.en}",
            f"BatchNorm：训练步 {times[0]} 毫秒，推理 {times[1]} 毫秒，保存 {saved:.1f} MB，"
            f"峰值 {peak:.1f} MB。网络 {SMALL_MODEL}，噪声输入 {setting[0]}，"
            f"线程数 {setting[1]}，轮数 {setting[2]}。{NOTE.zh}",
        ),
    )
    return [all_norms]


CAPTION = Text(
    "Each norm's cost over BatchNorm's, the cheapest training step first. Bars: quartiles of the "
    "rounds over BatchNorm's median; sizes have none. The line is at 1, the cost of BatchNorm "
    "(blue square); orange circles are RBN and its parts, green triangles the other norms.",
    "各归一化的代价与 BatchNorm 之比，按训练步耗时从低到高排列。"
    "横线：各轮计时的四分位数与 BatchNorm 中位数之比；内存大小没有横线。"
    "竖线为 1，即 BatchNorm（蓝色方块）的代价；橙色圆点是 RBN 及其组成部分，绿色三角是其他归一化。",
)
NOTE = Text(
    "A training step is forward, backward and SGD. MFLOP: millions of operations of a training "
    "step in convolutions and matrix products; what works element by element is not counted. The "
    "last four columns are ratios to BatchNorm. Times: medians of rounds in which the norms take "
    "turns; brackets: quartiles over BatchNorm's median. Kept for backward: bytes, without "
    "parameters and buffers. Peak memory: the most bytes that a training step allocates at a time.",
    "训练步包括前向、反向与 SGD 更新。MFLOP：一个训练步中卷积与矩阵乘法的运算量（百万次），"
    "不计逐元素运算。最后四列为与 BatchNorm 之比。耗时：各归一化轮流计时的中位数；"
    "方括号：四分位数与 BatchNorm 中位数之比。为反向传播保存：字节数，不含参数与缓冲区。"
    "峰值内存：一个训练步中同时分配的最大字节数。",
)
