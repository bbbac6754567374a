"""Draw a report: ``python -m tools.gpu_report.draw gpu-report.json docs/gpu.md README.md``.

Writes what was measured between the markers of each file: the tables into the page about GPUs, one
line into a README. docs/zh/gpu.md and README.zh-CN.md are written in Chinese.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from tools.gpu_report.options import Row
from tools.marks import put

NAME = "measured on a gpu"
FASTER = ("batchnorm", "batchnorm native")
CHINESE = {
    "shape": "形状",
    "dtype": "类型",
    "layout": "布局",
    "training: BatchNorm us": "训练：BatchNorm，微秒",
    "evaluation: BatchNorm us": "推理：BatchNorm，微秒",
    "of copy": "占复制速度",
    "us a call": "每次调用，微秒",
    "evaluation": "推理",
    "forward": "前向",
    "forward and backward": "前向加反向",
    "ResNet-50, batch 128": "ResNet-50，批大小 128",
    "ms a step": "每步，毫秒",
    "of BatchNorm": "与 BatchNorm 之比",
    "ms of the host": "主机，毫秒",
    "peak GiB": "峰值，GiB",
    "ResNet-18, 6 epochs": "ResNet-18，6 个周期",
    "test accuracy by seed": "各种子的测试准确率",
    "s an epoch": "每个周期，秒",
    "kernel": "算子",
    "maps read": "读特征图",
    "maps written": "写特征图",
    "us": "微秒",
}
"""The heads of the tables; what has no entry is the same in both languages."""
OUTCOMES = {"passed": "通过", "skipped": "跳过", "failed": "失败"}


class Report:
    """The rows of a report, by step."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = [row for row in rows if "failed" not in row and "left" not in row]

    def of(self, step: str, **wanted: Any) -> list[Row]:
        """The rows of a step with these values."""
        return [
            row
            for row in self.rows
            if row["step"] == step and all(row.get(k) == v for k, v in wanted.items())
        ]

    def versions(self) -> Row:
        """Of the machine."""
        return self.of("machine")[0]

    def ratios(self, **wanted: Any) -> list[tuple[Row, dict[str, float]]]:
        """Each case of the layer in a CUDA graph: its row, and us by subject."""
        cases: dict[Any, tuple[Row, dict[str, float]]] = {}
        for row in self.of("layers", how="graph", **wanted):
            key = tuple(row[k] for k in ("mode", "dtype", "layout", "shape"))
            cases.setdefault(key, (row, {}))[1][row["subject"]] = row["us"]
        return list(cases.values())


def faster(us: dict[str, float]) -> float:
    """Of BatchNorm with and without cuDNN."""
    return min(us[name] for name in FASTER if name in us)


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    rule = ["---"] * len(head)
    return ["", *("| " + " | ".join(cells) + " |" for cells in (head, rule, *body)), ""]


def _layers(report: Report) -> list[str]:
    modes = ("training", "inference")
    cases: dict[Any, dict[str, dict[str, float]]] = {}
    for row, us in report.ratios():
        key = (row["dtype"], row["layout"], row["shape"])
        cases.setdefault(key, {})[row["mode"]] = us
    body = []
    for (dtype, layout, shape), found in cases.items():
        cells = [shape, dtype, layout]
        for mode in modes:
            us = found.get(mode)
            if us is None:
                cells += ["", "", ""]
                continue
            copies = 4 if mode == "training" else 1
            share = copies * us["copy"] / us["rbn"]
            cells += [f"{faster(us):.0f}", f"{us['rbn'] / faster(us):.2f}", f"{share:.0%}"]
        body.append(cells)
    head = ["shape", "dtype", "layout"]
    head += ["training: BatchNorm us", "RBN", "of copy"]
    head += ["evaluation: BatchNorm us", "RBN", "of copy"]
    return _table(head, body)


def _overhead(report: Report) -> list[str]:
    modes = ("inference", "training forward", "training")
    subjects = list(dict.fromkeys(row["subject"] for row in report.of("overhead")))
    body = []
    for subject in subjects:
        found = {row["mode"]: row["us"] for row in report.of("overhead", subject=subject)
                 if "us" in row}  # fmt: skip
        body.append([subject, *(f"{found[m]:.0f}" if m in found else "" for m in modes)])
    return _table(["us a call", "evaluation", "forward", "forward and backward"], body)


def _model(report: Report) -> list[str]:
    body = []
    for how in ("eager", "compiled"):
        rows = {row["subject"]: row for row in report.of("model", how=how)}
        for name, row in rows.items():
            ratio = row["us"] / rows["batchnorm"]["us"]
            cells = [f"{row['us'] / 1e3:.1f}", f"{ratio:.3f}", f"{row['host_us'] / 1e3:.1f}"]
            body.append([f"{name}, {how}", *cells, f"{row['peak_mib'] / 1024:.2f}"])
    head = ["ResNet-50, batch 128", "ms a step", "of BatchNorm", "ms of the host", "peak GiB"]
    return _table(head, body) if body else []


def _training(report: Report) -> list[str]:
    body = []
    for name in ("batchnorm", "rbn"):
        rows = report.of("training", subject=name)
        if rows:
            accuracies = ", ".join(f"{row['accuracy']:.2%}" for row in rows)
            body.append([name, accuracies, f"{median(row['epoch_s'] for row in rows):.2f}"])
    head = ["ResNet-18, 6 epochs", "test accuracy by seed", "s an epoch"]
    return _table(head, body) if body else []


def _counters(report: Report) -> list[str]:
    body = [
        [row["kernel"], row["layout"], f"{row['read']:.2f}", f"{row['written']:.2f}",
         f"{row['us']:.1f}", f"{row['gb_per_s']:.0f}"]
        for row in report.of("counters") if row.get("kernel", "void").split()[0] != "void"
    ]  # fmt: skip
    head = ["kernel", "layout", "maps read", "maps written", "us", "GB/s"]
    return _table(head, body) if body else []


def page(report: Report, chinese: bool = False) -> list[str]:
    """The part of the page about GPUs."""
    v = report.versions()
    copy = max(row["gb_per_s"] for row in report.of("machine") if "gb_per_s" in row)
    compared = report.of("correctness")
    right = sum(row["right"] for row in compared)
    tests = [row["outcome"] for row in report.of("suite") if row["test"] != "all"]
    counts = {outcome: tests.count(outcome) for outcome in dict.fromkeys(tests)}
    tables = [part(report) for part in (_layers, _overhead, _model, _training, _counters)]
    if chinese:
        tables = [_headed(table) for table in tables]
        ran = "，".join(f"{OUTCOMES.get(name, name)} {count} 项" for name, count in counts.items())
        said = [
            f"{v['card']}，torch {v['torch']}，Triton {v['triton']}；"
            f"复制的速度是 {copy:.0f} GB/s。",
            f"与 float64 定义的 {len(compared)} 项比较中 {right} 项正确"
            + (f"；`tests/gpu` {ran}。" if ran else "。"),
            "",
            "单层，在 CUDA graph 中轮流使用多份输入，因此既不计主机时间，也不受缓存影响；"
            "RBN 一列是与 cuDNN 和 PyTorch 两种 BatchNorm 中较快者的耗时之比。"
            "*占复制速度*：RBN 的速度与复制同一特征图的速度之比，"
            "训练按读写 8 遍特征图、推理按 2 遍计。",
        ]
        busy = "处理 2 x 16 x 8 x 8 的特征图时，一次调用占用主机多久："
    else:
        ran = ", ".join(f"{count} {name}" for name, count in counts.items())
        said = [
            f"{v['card']}, torch {v['torch']}, Triton {v['triton']}; a copy moves {copy:.0f} GB/s.",
            f"{right} of {len(compared)} comparisons with the definition in float64 were right"
            + (f"; of `tests/gpu` {ran}." if ran else "."),
            "",
            "The layer alone, in a CUDA graph and over inputs that take turns, so that neither the "
            "host nor a cache counts; RBN as a multiple of the faster BatchNorm, of cuDNN or of "
            "PyTorch. *Of copy*: the speed of RBN, counting 8 passes over the map in training and "
            "2 in evaluation, against a copy of the same map.",
        ]
        busy = "How long the host is busy with a call on a map of 2 x 16 x 8 x 8:"
    layers, overhead, *others = tables
    return ["", *said, *layers, busy, *overhead, *(row for table in others for row in table)]


def _headed(table: list[str]) -> list[str]:
    if not table:
        return []
    blank, head, *rest = table
    cells = head.strip("| ").split(" | ")
    return [blank, "| " + " | ".join(CHINESE.get(cell, cell) for cell in cells) + " |", *rest]


def line(report: Report, chinese: bool) -> str:
    """The line of a README."""

    def spread(mode: str) -> tuple[float, float, float]:
        found = sorted(us["rbn"] / faster(us) for _, us in report.ratios(mode=mode))
        return median(found), found[0], found[-1]

    card, train, test = report.versions()["card"], spread("training"), spread("inference")
    host = {
        name: next(row["us"] for row in report.of("overhead", subject=name, mode="training"))
        for name in ("batchnorm", "rbn")
    }
    steps = {row["subject"]: row["us"] for row in report.of("model", how="eager")}
    step = steps["rbn"] / steps["batchnorm"] if "rbn" in steps else None
    a, b, c = (f"{value:.2f}" for value in train)
    d, e, f = (f"{value:.2f}" for value in test)
    overhead = f"{host['rbn']:.0f}", f"{host['batchnorm']:.0f}"
    if chinese:
        model = "" if step is None else f"，ResNet-50（批大小 128，eager）的一步是 {step:.2f} 倍"
        return (
            f"GPU：在 {card} 上，CUDA graph 中这一层的训练耗时是 BatchNorm 的 {a} 倍"
            f"（中位数，{b} 到 {c}），推理 {d} 倍（{e} 到 {f}）{model}："
            f"不用 CUDA graph 时往往由主机决定，一次前向加反向占用主机 {overhead[0]} 微秒，"
            f"BatchNorm 为 {overhead[1]} 微秒。"
        )
    model = (
        ""
        if step is None
        else f"; an eager step of ResNet-50 at batch 128 takes {step:.2f} times as long"
    )
    return (
        f"On a GPU ({card}), in a CUDA graph, the layer's training pass takes {a} times "
        f"BatchNorm's (median, {b} to {c}), evaluation {d} ({e} to {f}){model}: outside a graph "
        f"the host is what counts, busy for {overhead[0]} us with forward and backward, "
        f"BatchNorm's for {overhead[1]}."
    )


def main(source: str, *targets: str) -> None:
    """Rewrite every file that is named."""
    report = Report(json.loads(Path(source).read_text()))
    for target in map(Path, targets):
        if target.name.startswith("README"):
            put(target, NAME, line(report, target.name.endswith("zh-CN.md")))
        else:
            put(target, NAME, "\n".join([*page(report, target.parent.name == "zh"), ""]))


if __name__ == "__main__":
    main(*sys.argv[1:])
