"""What the norms cost, from the benchmark's rows."""

from collections.abc import Sequence

from rbnorm_lab.bench.cases import BASELINE
from rbnorm_lab.bench.networks import SMALL_MODEL
from rbnorm_lab.studies.costs import RATIOS, Costs, Ratio, bench_command, load_costs
from rbnorm_lab.studies.figures import ratios_figure
from rbnorm_lab.studies.results import Results
from rbnorm_lab.studies.sentences import NOT_RUN, SUBJECT
from rbnorm_lab.studies.study import Rate, Settings, Study
from rbnorm_lab.templates import Section, Table
from rbnorm_lab.text import Text


def study(settings: Settings, rate: Rate) -> Study:
    """Nothing is trained."""
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
    ours, least, most = costs.of(SUBJECT), costs.norms[0], costs.norms[-1]
    step, inference, saved, peak = (bracketed(ours.ratios[name]) for name in RATIOS)
    more = f"{ours.more_parameters:,} ({ours.more_share:.1%})"
    dearest = [f"{cost.norm} ({cost.ratios['step'].value:.2f})" for cost in (least, most)]
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
            f"the cheapest training step is that of {dearest[0]}, the dearest that of {dearest[1]}",
            f"训练步最省时的是 {dearest[0]}，最费时的是 {dearest[1]}",
        ),
    ]


def bracketed(ratio: Ratio) -> str:
    """A ratio with its range, where it has one."""
    if ratio.range is None:
        return f"{ratio.value:.2f}"
    low, high = ratio.range
    return f"{ratio.value:.2f} [{low:.2f}, {high:.2f}]"


def sections(results: Results) -> Sequence[Section]:
    """All norms, or the command that measures them."""
    costs = load_costs(results.folder)
    if costs is None:
        command = bench_command(results.folder)
        return [Section(NOT_RUN, lines=[Text(f"Measure it: {command}", f"测量命令：{command}")])]
    return [_norms(costs, results)]


def _norms(costs: Costs, results: Results) -> Section:
    step, inference = costs.step, costs.inference
    rows = [
        [
            cost.norm,
            f"{cost.parameters:,}",
            f"{cost.buffers:,}",
            f"{cost.flops / 1e6:,.1f}",
            *(bracketed(cost.ratios[name]) for name in RATIOS),
        ]
        for cost in costs.norms
    ]
    head = (Text("norm", "归一化"), Text("parameters", "参数"), Text("buffers", "缓冲区"), "MFLOP")
    drawn = {
        words.en: {c.norm: (c.ratios[name].value, c.ratios[name].range) for c in costs.norms}
        for name, words in RATIOS.items()
    }
    machine = [[name, str(value or "unknown")] for name, value in costs.machine.items()]
    device = costs.machine.get("device", "cpu")
    measured = bench_command(results.folder, "cpu" if device == "cpu" else "cuda")
    saved, peak = ((getattr(step, name) or 0) / 1e6 for name in ("saved_bytes", "peak_bytes"))
    times = f"{1e3 * step.median_s:.1f}", f"{1e3 * inference.median_s:.1f}"
    setting = f"{step.size}, {step.dtype}, {step.layout}", step.threads, step.rounds
    return Section(
        Text("All norms", "全部归一化"),
        figure=("ratios", lambda narrow: ratios_figure(drawn, baseline=BASELINE, narrow=narrow)),
        caption=CAPTION,
        tables=[
            Table("costs", (*head, *RATIOS.values()), rows, kind="wrapped"),
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
