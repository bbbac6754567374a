"""Draw a report: ``python -m tools.gpu_report.draw gpu-report.json docs/gpu.md README.md``.

Writes what was measured between the markers of each file: the tables into the page about GPUs, one
line into a README. docs/zh/gpu.md and README.zh-CN.md are written in Chinese.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from tools.marks import put

Row = dict[str, Any]
NAME = "measured on a gpu"
PAGE = {
    "en": """
{card}, torch {torch}, Triton {triton}; a copy moves {copy:.0f} GB/s.

The layer alone, in a CUDA graph and over inputs that take turns, so that neither the host nor a \
cache counts; RBN as a multiple of the faster BatchNorm, of cuDNN or of PyTorch. *Of copy*: the \
speed of RBN, counting 8 passes over the map in training and 2 in evaluation, against a copy of \
the same map.
{layers}
How long the host is busy with a call on a map of 2 x 16 x 8 x 8:
{overhead}
{model}
{counters}
""",
    "zh": """
{card}，torch {torch}，Triton {triton}；复制的速度是 {copy:.0f} GB/s。

单层，在 CUDA graph 中轮流使用多份输入，因此既不计主机时间，也不受缓存影响；RBN 一列是与 cuDNN 和 \
PyTorch 两种 BatchNorm 中较快者的耗时之比。*占复制速度*：RBN 的速度与复制同一特征图的速度之比，\
训练按读写 8 遍特征图、推理按 2 遍计。
{layers}
处理 2 x 16 x 8 x 8 的特征图时，一次调用占用主机多久：
{overhead}
{model}
{counters}
""",
}
LINE = {
    "en": "On a GPU ({card}), in a CUDA graph, the layer's training pass takes {training} times "
    "BatchNorm's (median, {training_least} to {training_most}), evaluation {inference} "
    "({inference_least} to {inference_most}); an eager step of ResNet-50 at batch 128 takes {step} "
    "times as long: outside a graph the host is what counts, busy for {rbn} us with forward and "
    "backward, BatchNorm's for {batchnorm}.",
    "zh": "GPU：在 {card} 上，CUDA graph 中这一层的训练耗时是 BatchNorm 的 {training} 倍"
    "（中位数，{training_least} 到 {training_most}），推理 {inference} 倍"
    "（{inference_least} 到 {inference_most}），ResNet-50（批大小 128，eager）的一步是 {step} 倍："
    "不用 CUDA graph 时往往由主机决定，一次前向加反向占用主机 {rbn} 微秒，"
    "BatchNorm 为 {batchnorm} 微秒。",
}
HEADS = {
    "layers": "shape|形状; dtype|类型; layout|布局; training: BatchNorm us|训练：BatchNorm，微秒; "
    "RBN; of copy|占复制速度; evaluation: BatchNorm us|推理：BatchNorm，微秒; RBN; "
    "of copy|占复制速度",
    "overhead": "us a call|每次调用，微秒; evaluation|推理; forward|前向; "
    "forward and backward|前向加反向",
    "model": "ResNet-50, batch 128|ResNet-50，批大小 128; ms a step|每步，毫秒; "
    "of BatchNorm|与 BatchNorm 之比; ms of the host|主机，毫秒; peak GiB|峰值，GiB",
    "counters": "kernel|算子; layout|布局; maps read|读特征图; maps written|写特征图; us|微秒; "
    "GB/s",
}
"""The heads of the tables, in both languages where they differ."""


class Report:
    """The rows of a report, by step."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = [row for row in rows if "failed" not in row and "left" not in row]

    def of(self, step: str, **wanted: Any) -> list[Row]:
        """The rows of a step with these values."""
        wanted["step"] = step
        return [row for row in self.rows if all(row.get(k) == v for k, v in wanted.items())]

    def layers(self) -> dict[tuple[str, ...], dict[str, dict[str, float]]]:
        """By shape, dtype and layout, and by mode: us of each subject in a CUDA graph."""
        found: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
        for row in self.of("layers", how="graph"):
            case = found.setdefault((row["shape"], row["dtype"], row["layout"]), {})
            case.setdefault(row["mode"], {})[row["subject"]] = row["us"]
        return found


def faster(us: dict[str, float]) -> float:
    """Of BatchNorm with and without cuDNN."""
    return min(us[name] for name in ("batchnorm", "batchnorm native") if name in us)


def _layers(report: Report) -> Iterator[list[str]]:
    for case, found in report.layers().items():
        cells = [*case]
        for mode, copies in (("training", 4), ("inference", 1)):
            us = found.get(mode)
            if us is None:
                cells += ["", "", ""]
                continue
            share = copies * us["copy"] / us["rbn"]
            cells += [f"{faster(us):.0f}", f"{us['rbn'] / faster(us):.2f}", f"{share:.0%}"]
        yield cells


def _overhead(report: Report) -> Iterator[list[str]]:
    found: dict[str, dict[str, float]] = {}
    for row in report.of("overhead"):
        if "us" in row:
            found.setdefault(row["subject"], {})[row["mode"]] = row["us"]
    modes = ("inference", "training forward", "training")
    for subject, us in found.items():
        yield [subject, *(f"{us[mode]:.0f}" if mode in us else "" for mode in modes)]


def _model(report: Report) -> Iterator[list[str]]:
    for row in report.of("model"):
        (base,) = report.of("model", how=row["how"], subject="batchnorm")
        ms, ratio, host = row["us"] / 1e3, row["us"] / base["us"], row["host_us"] / 1e3
        name, peak = row["subject"], row["peak_mib"] / 1024
        name += "" if name.startswith("compiled") else ", eager"
        yield [name, f"{ms:.1f}", f"{ratio:.3f}", f"{host:.1f}", f"{peak:.2f}"]


def _counters(report: Report) -> Iterator[list[str]]:
    formats = {"read": ".2f", "written": ".2f", "us": ".1f", "gb_per_s": ".0f"}
    for row in report.of("counters"):
        if not row.get("kernel", "void").startswith("void"):
            yield [row["kernel"], row["layout"], *(format(row[k], f) for k, f in formats.items())]


def page(report: Report, language: str) -> str:
    """The part of the page about GPUs."""
    chinese = language == "zh"

    def drawn(name: str, rows: Iterator[list[str]]) -> str:
        words = [cell.partition("|") for cell in HEADS[name].split("; ")]
        head = [zh if chinese and zh else en for en, _, zh in words]
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join(["", *("| " + " | ".join(cells) + " |" for cells in lines), ""])

    return PAGE[language].format(
        **report.of("machine")[0],
        copy=max(row["gb_per_s"] for row in report.of("machine") if "gb_per_s" in row),
        layers=drawn("layers", _layers(report)),
        overhead=drawn("overhead", _overhead(report)),
        model=drawn("model", _model(report)),
        counters=drawn("counters", _counters(report)),
    )


def line(report: Report, language: str) -> str:
    """The line of a README."""
    said: dict[str, str] = {"card": report.of("machine")[0]["card"]}
    for mode in ("training", "inference"):
        found = [us[mode] for us in report.layers().values() if mode in us]
        ratios = [us["rbn"] / faster(us) for us in found]
        of = {mode: median(ratios), f"{mode}_least": min(ratios), f"{mode}_most": max(ratios)}
        said |= {name: f"{ratio:.2f}" for name, ratio in of.items()}
    for row in report.of("overhead", mode="training"):
        said.setdefault(row["subject"], f"{row['us']:.0f}" if "us" in row else "")
    steps = {row["subject"]: row["us"] for row in report.of("model", how="eager")}
    said["step"] = f"{steps['rbn'] / steps['batchnorm']:.2f}"
    return LINE[language].format(**said)


def main(source: str, *targets: str) -> None:
    """Rewrite every file that is named."""
    report = Report(json.loads(Path(source).read_text()))
    for target in map(Path, targets):
        language = "zh" if target.parent.name == "zh" or "zh-CN" in target.name else "en"
        drawn = line if target.name.startswith("README") else page
        put(target, NAME, drawn(report, language))


if __name__ == "__main__":
    main(*sys.argv[1:])
