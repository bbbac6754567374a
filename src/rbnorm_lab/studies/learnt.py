"""What RBN learnt in the networks of a study: its calibration by depth."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from rbnorm_lab.records import Record
from rbnorm_lab.studies.results import Results
from rbnorm_lab.studies.sentences import SUBJECT
from rbnorm_lab.templates import Section
from rbnorm_lab.text import Text, signed

CENTER, SCALE, GATE = "center_weight", "scale_weight", "scale_bias"
_FEW: Final = 2  # layers, below which there is no depth


def learnt(results: Results) -> dict[str, list[Record]]:
    """The runs of the arm named ``rbn`` in each group that has any, and several layers of RBN."""
    runs = {r.arm.group: list(r.records.values()) for r in results.of(SUBJECT)}
    return {
        group: records
        for group, records in runs.items()
        if records and len(records[0].calibration) >= _FEW
    }


def sections(results: Results) -> list[Section]:
    """What the page of the networks says of it."""
    said = [sentence(group, records) for group, records in learnt(results).items()]
    return [Section(Text("What RBN learnt", "RBN 学到了什么"), lines=said)] if said else []


def sentence(group: str, records: Sequence[Record]) -> Text:
    """What one network learnt: means over its runs of quantiles over the channels of a layer.

    The gate is R(w_b), that of an image that is like the average. Of all channels the shares whose
    w_m, and whose w_v, is within 0.05 of 0 are told where the records have them.
    """

    def quantile(name: str, q: str) -> npt.NDArray[np.float64]:
        every = [[layer[name][q] for layer in r.calibration.values()] for r in records]
        mean: npt.NDArray[np.float64] = np.asarray(every, dtype=float).mean(0)
        return mean

    gate = 1 / (1 + np.exp(-quantile(GATE, "q0.50")))
    numbers = (
        np.median(quantile(CENTER, "q0.50")),
        quantile(CENTER, "q0.05").min(),
        quantile(CENTER, "q0.95").max(),
    )
    w_m, low, high = (signed(float(number)) for number in numbers)
    seeds, first, last = len(records), gate[0], gate[-1]
    en = (
        f"{group} ({seeds} seed{'s' * (seeds != 1)}): the layers' median w_m is "
        f"{w_m}, nine channels in ten of each lie between {low} and "
        f"{high}; the median gate is {first:.2f} in the first layer and {last:.2f} in the last"
    )
    zh = (
        f"{group}（{seeds} 个种子）：各层 w_m 的中位数为 {w_m}，"
        f"每层九成通道在 {low} 与 {high} 之间；门控的中位数在第一层为 {first:.2f}，"
        f"在最后一层为 {last:.2f}"
    )
    layers = [layer for record in records for layer in record.calibration.values()]
    if all("inert" in layer[CENTER] for layer in layers):
        shares = [
            f"{100 * np.mean([layer[name]['inert'] or 0.0 for layer in layers]):.0f}"
            for name in (CENTER, SCALE)
        ]
        en += f"; within 0.05 of 0 are {shares[0]} % of w_m and {shares[1]} % of w_v"
        zh += f"；与 0 相差不到 0.05 的，w_m 占 {shares[0]}%，w_v 占 {shares[1]}%"
    return Text(f"{en}.", f"{zh}。")
