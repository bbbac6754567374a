"""What RBN learnt in the networks of a study: its calibration by depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rbnorm_lab.plots import BASELINE_MARK, INK, NARROW, RC, SUBJECT_MARK
from rbnorm_lab.records import Record
from rbnorm_lab.studies.results import Results
from rbnorm_lab.studies.sentences import SUBJECT
from rbnorm_lab.templates import Section
from rbnorm_lab.text import Text, signed

CENTER, SCALE, GATE = "center_weight", "scale_weight", "scale_bias"
_LOW, _MIDDLE, _HIGH = _BAND = ("q0.05", "q0.50", "q0.95")
Array = npt.NDArray[np.float64]
_FEW: Final = 2  # layers, below which there is no depth


@dataclass(frozen=True)
class Learnt:
    """The calibration of one network, layer by layer; means over the seeds.

    Attributes:
        group: The network's group of arms.
        seeds: Number of runs.
        center: The quantiles 0.05, 0.5 and 0.95 over channels of w_m, a column for every layer.
        gate: Likewise of R(w_b), the gate of an image that is like the average.
        inert: The share of all channels whose w_m, and whose w_v, is within 0.05 of 0; empty where
            the records do not have it.
        spread: By norm the spread of the channel means of every layer's output, where measured.
    """

    group: str
    seeds: int
    center: Array
    gate: Array
    inert: dict[str, float]
    spread: dict[str, Array]


def learnt(results: Results) -> list[Learnt]:
    """What the arm named ``rbn`` learnt in each group that has runs of it."""
    found = []
    for group, arms in results.groups().items():
        by_label = {arm.arm.label: list(arm.records.values()) for arm in arms}
        records = by_label.get(SUBJECT, [])
        if records and len(records[0].calibration) >= _FEW:
            spread = {
                label: _spread(of)
                for label in ("bn", SUBJECT)
                if (of := [r for r in by_label.get(label, []) if r.channel_mean_std])
            }
            found.append(
                Learnt(
                    group,
                    len(records),
                    _quantiles(records, CENTER),
                    1 / (1 + np.exp(-_quantiles(records, GATE))),
                    _inert(records),
                    spread,
                )
            )
    return found


def _quantiles(records: Sequence[Record], name: str) -> Array:
    """Of shape (3, layers)."""
    values = [
        [[layer[name][q] for layer in record.calibration.values()] for q in _BAND]
        for record in records
    ]
    mean: Array = np.asarray(values, dtype=float).mean(0)
    return mean


def _inert(records: Sequence[Record]) -> dict[str, float]:
    """Means over layers, which count alike whatever their channels."""
    layers = [layer for record in records for layer in record.calibration.values()]
    if any("inert" not in layer[CENTER] for layer in layers):
        return {}
    return {
        name: float(np.mean([layer[name]["inert"] or 0.0 for layer in layers]))
        for name in (CENTER, SCALE)
    }


def _spread(records: Sequence[Record]) -> Array:
    values = [list(record.channel_mean_std.values()) for record in records]
    mean: Array = np.asarray(values, dtype=float).mean(0)
    return mean


def sections(results: Results) -> list[Section]:
    """What the page of the networks says of it."""
    found = learnt(results)
    if not found:
        return []
    return [
        Section(
            Text("What RBN learnt", "RBN 学到了什么"),
            figure=("learnt", lambda narrow: learnt_figure(found, narrow=narrow)),
            caption=Text(
                "Three panels for each network, means over the seeds. First: w_m of the layers, "
                "median over channels and the range of nine in ten. Second: likewise the gate "
                "R(w_b) of an image that is like the average. Third, where it was measured: the "
                "spread over channels of the channel means of each layer's output.",
                "每个网络三幅图，为各种子的均值。第一幅：各层的 w_m，通道中位数与九成通道的范围。"
                "第二幅：同样方式给出与平均图像相同时的门控 R(w_b)。"
                "第三幅（有测量时）：各层输出的通道均值在通道之间的离散程度。",
            ),
            lines=[sentence(of) for of in found],
        )
    ]


def sentence(of: Learnt) -> Text:
    """What one network learnt."""
    numbers = np.median(of.center[1]), of.center[0].min(), of.center[2].max()
    w_m, low, high = (signed(float(number)) for number in numbers)
    first, last = of.gate[1][0], of.gate[1][-1]
    en = (
        f"{of.group} ({of.seeds} seed{'s' * (of.seeds != 1)}): the layers' median w_m is "
        f"{w_m}, nine channels in ten of each lie between {low} and "
        f"{high}; the median gate is {first:.2f} in the first layer and {last:.2f} in the last"
    )
    zh = (
        f"{of.group}（{of.seeds} 个种子）：各层 w_m 的中位数为 {w_m}，"
        f"每层九成通道在 {low} 与 {high} 之间；门控的中位数在第一层为 {first:.2f}，"
        f"在最后一层为 {last:.2f}"
    )
    if of.inert:
        shares = [f"{100 * of.inert[name]:.0f}" for name in (CENTER, SCALE)]
        en += f"; within 0.05 of 0 are {shares[0]} % of w_m and {shares[1]} % of w_v"
        zh += f"；与 0 相差不到 0.05 的，w_m 占 {shares[0]}%，w_v 占 {shares[1]}%"
    return Text(f"{en}.", f"{zh}。")


def learnt_figure(found: Sequence[Learnt], *, narrow: bool = False) -> Figure:
    """A row for each network: w_m, the gate and the spread of the channel means, by depth."""
    columns = 3 if any(of.spread for of in found) else 2
    with mpl.rc_context(RC):
        height = 2.3 * len(found)
        size = (NARROW, columns * height) if narrow else (3.4 * columns, height + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        shape = (len(found) * columns, 1) if narrow else (len(found), columns)
        rows = figure.subplots(*shape, squeeze=False).reshape(len(found), columns)
        for (center, gate, *spreads), of in zip(rows, found, strict=True):
            center.axhline(0, color=INK, linewidth=1)
            _band(center, of.center)
            _band(gate, of.gate)
            center.set_title(of.group, loc="left", fontsize=10)
            center.set_ylabel("w_m")
            gate.set_ylabel("R(w_b)")
            for spread in spreads:
                _spreads(spread, of.spread)
        for axes in rows[-1]:
            axes.set_xlabel("layer, from input to output")
    return figure


def _spreads(axes: Axes, spread: dict[str, Array]) -> None:
    for label, mark in (("bn", BASELINE_MARK), (SUBJECT, SUBJECT_MARK)):
        if label in spread:
            axes.plot(spread[label], color=mark[0], marker=mark[1], markersize=3, label=label)
    if not spread:
        axes.set_axis_off()
        return
    axes.legend(frameon=False, fontsize=8)
    axes.set_ylabel("std of channel means")


def _band(axes: Axes, quantiles: Array) -> None:
    low, middle, high = quantiles
    depth = range(len(middle))
    axes.fill_between(depth, low, high, color=SUBJECT_MARK[0], alpha=0.2, linewidth=0)
    axes.plot(depth, middle, color=SUBJECT_MARK[0], marker=SUBJECT_MARK[1], markersize=3)
