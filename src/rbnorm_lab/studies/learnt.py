"""What RBN learnt in the networks of a study: its calibration by depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from rbnorm_lab.records import Record
from rbnorm_lab.studies.results import Results
from rbnorm_lab.studies.sentences import SUBJECT
from rbnorm_lab.templates import Section
from rbnorm_lab.text import Text, signed

CENTER, SCALE, GATE = "center_weight", "scale_weight", "scale_bias"
_QUANTILES: Final = ("q0.05", "q0.50", "q0.95")
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
    """

    group: str
    seeds: int
    center: Array
    gate: Array
    inert: dict[str, float]

    @classmethod
    def of(cls, group: str, records: Sequence[Record]) -> "Learnt":
        """What these runs of a network learnt."""

        def quantiles(name: str) -> Array:
            every = [
                [[layer[name][q] for layer in record.calibration.values()] for q in _QUANTILES]
                for record in records
            ]
            mean: Array = np.asarray(every, dtype=float).mean(0)
            return mean

        layers = [layer for record in records for layer in record.calibration.values()]
        known = all("inert" in layer[CENTER] for layer in layers)
        inert = {
            name: float(np.mean([layer[name]["inert"] or 0.0 for layer in layers]))
            for name in (CENTER, SCALE)
            if known
        }
        gate = 1 / (1 + np.exp(-quantiles(GATE)))
        return cls(group, len(records), quantiles(CENTER), gate, inert)


def learnt(results: Results) -> list[Learnt]:
    """What the arm named ``rbn`` learnt in each group that has runs of it."""
    runs = {r.arm.group: list(r.records.values()) for r in results.of(SUBJECT)}
    return [
        Learnt.of(group, records)
        for group, records in runs.items()
        if records and len(records[0].calibration) >= _FEW
    ]


def sections(results: Results) -> list[Section]:
    """What the page of the networks says of it."""
    found = learnt(results)
    if not found:
        return []
    return [
        Section(
            Text("What RBN learnt", "RBN 学到了什么"),
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
