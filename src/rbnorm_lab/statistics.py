"""Means over seeds with what the seeds say about their accuracy, and tests of differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE: Final = 0.95
MOST_SIGN_CHANGES: Final = 2**20
"""All sign changes of 20 differences, about three seconds."""


@dataclass(frozen=True)
class Estimate:
    """The mean of a sample, with what the sample says about its accuracy.

    Attributes:
        values: The sample.
        mean: Its mean.
        interval: 95 % t interval of the mean. None where the sample cannot give one: it has a
            single value, or values without any spread.
        p: Two-sided p value of the t test that the mean is zero, where there is an interval; None
            for a mean over blocks.
        blocks: The values of every block, for a mean over blocks.
    """

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    blocks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def detectable(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def margin(self) -> float | None:
        """Half the width of the interval, which is symmetric."""
        return None if self.interval is None else self.interval[1] - self.mean


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and t interval of a sample.

    Raises:
        ValueError: The sample is empty, or a value is not finite.
    """
    sample = _sample(values)
    mean = float(sample.mean())
    # differences that are equal on paper differ by rounding, which is no spread either
    if len(sample) < 2 or np.ptp(sample) < 1e-9:
        return Estimate(tuple(values), mean, None, None)
    test = stats.ttest_1samp(sample, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return Estimate(tuple(values), mean, (float(low), float(high)), float(test.pvalue))


def blocked(blocks: Mapping[str, Sequence[float]]) -> Estimate:
    """Mean and interval over blocks.

    The mean is that of the blocks' means, so that each block counts alike. The interval has the
    blocks as fixed effects: the variance is pooled inside them; None where no block has two values,
    or all values of each block are equal.

    Raises:
        ValueError: There is no block, or one without finite values.
    """
    if not blocks:
        raise ValueError("a mean over blocks needs a block")
    own = {name: _sample(values) for name, values in blocks.items()}
    mean = float(np.mean([values.mean() for values in own.values()]))
    free = sum(len(values) - 1 for values in own.values())
    squares = sum(float(np.square(values - values.mean()).sum()) for values in own.values())
    interval = None
    if free and squares > 1e-18 * free:
        of_mean = squares / free * sum(1 / len(values) for values in own.values())
        margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, free)) * math.sqrt(of_mean) / len(own)
        interval = (mean - margin, mean + margin)
    kept = {name: tuple(values) for name, values in blocks.items()}
    return Estimate(tuple(chain(*kept.values())), mean, interval, None, kept)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p value of paired differences, from the sign changes that chance could have made.

    If treatment and control do not differ, each difference could as well have had the other sign.
    p is the share of all ``2**n`` choices of signs whose mean is at least as far from zero as that
    of the sample, so it is never below ``2 / 2**n``. Means that are equal but for rounding are
    equal. More than 20 differences are judged by :data:`MOST_SIGN_CHANGES` random choices of signs,
    always the same.

    Args:
        differences: Differences of shares, in pairs that are independent of each other.

    Raises:
        ValueError: There are no differences, or one is not finite.
    """
    sample = _sample(differences)
    if len(sample) == 1:
        return 1.0  # scipy asks for two

    def distance(flipped: Any, axis: int) -> Any:
        # scipy takes values as equal that differ by less than 2e-14 of their size: one more than
        # the distance makes that 2e-14 of a share, where the rounding of accuracies ends
        return 1 + np.abs(flipped.mean(axis))

    test = stats.permutation_test(
        (sample,),
        distance,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=MOST_SIGN_CHANGES,
        batch=2**14,
        rng=0,
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P values adjusted for their number by the method of Holm (1979), in the given order.

    Rejecting where the adjusted value is at most alpha keeps the probability of any false rejection
    below alpha, however the tests depend on each other.

    Raises:
        ValueError: A value is not between 0 and 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values lie between 0 and 1, which does not hold for {list(p_values)}")
    if not p_values:
        return ()
    return tuple(float(p) for p in multipletests(p_values, method="holm")[1])


def _sample(values: Sequence[float]) -> Any:
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise ValueError(f"a sample is one or more finite numbers, not {list(values)}")
    return sample
