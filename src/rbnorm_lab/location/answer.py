"""What the records of the study of location say: rank correlations and gains by choice."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.stats import spearmanr

from rbnorm_lab.location.measure import SIGNALS
from rbnorm_lab.text import Text

_RESAMPLES: Final = 2000
_SEED: Final = 0
CHOICES: Final = {
    "named": "named",
    "random": "random",
    "shift": "by shift",
    "cases": "by cases",
    "between_share": "by variance",
    "all": "all",
}
"""The choices of layers, as a table's columns call them: all but the last as many as are named."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's of a signal and what re-estimating a layer wins, over the layers.

    Attributes:
        value: The coefficient.
        low: End of its 95 % interval, a percentile bootstrap over the layers.
        high: The other end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Located:
    """One condition.

    Attributes:
        condition: Its name.
        clean: Accuracy on the first data set.
        accuracy: On the second, the model as it is.
        layers: Number of layers.
        named: Number of named layers.
        correlations: By signal.
        gains: By choice, the gain in accuracy; of the random draws the mean.
    """

    condition: str
    clean: float
    accuracy: float
    layers: int
    named: int
    correlations: dict[str, Correlation]
    gains: dict[str, float]


def located(records: Sequence[dict[str, Any]]) -> list[Located]:
    """One entry for each condition, in the order of the records."""
    by_condition = defaultdict(list)
    for record in records:
        by_condition[record["condition"]].append(record)
    return [_located(condition, found) for condition, found in by_condition.items()]


def _located(condition: str, records: Sequence[dict[str, Any]]) -> Located:
    layers = [r for r in records if r["kind"] == "layer"]
    choices = {r["choice"]: r for r in records if r["kind"] == "choice"}
    drawn = [r["gain"] for name, r in choices.items() if name.startswith("random")]
    gains = {name: r["gain"] for name, r in choices.items() if not name.startswith("random")}
    named = choices["named"]
    return Located(
        condition,
        named["clean_accuracy"],
        named["accuracy"],
        len(layers),
        len(named["layers"]),
        {signal: correlation(layers, signal) for signal in SIGNALS},
        {**gains, "random": float(np.mean(drawn))},
    )


def correlation(layers: Sequence[dict[str, Any]], signal: str) -> Correlation:
    """Of a signal with the gain in cross-entropy, which ties less than that in accuracy."""
    pairs = np.array([(r[signal], r["loss_gain"]) for r in layers if r[signal] is not None])
    draw = np.random.default_rng(_SEED)
    drawn = [
        _spearman(pairs[draw.integers(len(pairs), size=len(pairs))]) for _ in range(_RESAMPLES)
    ]
    known = [value for value in drawn if not math.isnan(value)] or [math.nan]
    low, high = np.percentile(known, (2.5, 97.5))
    return Correlation(_spearman(pairs), float(low), float(high))


def _spearman(pairs: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """NaN where one of both is constant."""
    if (pairs == pairs[:1]).all(0).any():
        return math.nan
    return float(spearmanr(*pairs.T).statistic)


def verdict(found: Sequence[Located]) -> Text:
    """In one sentence whether the named layers are those worth re-estimating."""
    if not found:
        return Text("Not run.", "未运行。")
    sure = sum(f.correlations["own_shift"].low > 0 for f in found)
    ahead = sum(f.gains["named"] > f.gains["random"] for f in found)
    mean = float(np.mean([f.correlations["own_shift"].value for f in found]))
    whole = sum(f.gains["all"] > f.gains["named"] for f in found)
    return Text(
        f"Rank correlation of a layer's own shift with what re-estimating it wins: {mean:+.2f} on "
        f"average, its interval above zero in {sure} of {len(found)} conditions; the named layers "
        f"win more than as many random ones in {ahead}, less than all layers together in {whole}.",
        f"各层自身偏移与重新估计该层所得收益的秩相关平均为 {mean:+.2f}，"
        f"{len(found)} 种条件中有 {sure} 种的区间在零以上；"
        f"点名的层在 {ahead} 种条件下优于随机选取的同样多的层，在 {whole} 种条件下不及全部层。",
    )
