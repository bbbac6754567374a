"""The statistics on data whose truth is known: simulated, or counted out in whole numbers."""

import itertools
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from rbnorm_lab import statistics
from rbnorm_lab.statistics import Estimate, blocked, estimate, holm, sign_flip


def chance(p, trials):
    """Four standard deviations of a share of trials, which one seed in 15,000 leaves."""
    return 4 * sqrt(p * (1 - p) / trials)


def test_the_interval_is_students():
    values = [0.91, 0.95, 0.96, 0.93]
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    result = estimate(values)
    assert result.mean == pytest.approx(0.9375)
    assert result.interval == pytest.approx((0.9375 - half, 0.9375 + half))
    assert result.margin == pytest.approx(half)


@pytest.mark.parametrize("values", [[0.9], [0.9, 0.9, 0.9], [0.3, 0.1 + 0.2]])
def test_without_spread_there_is_no_interval(values):
    result = estimate(values)
    assert (result.interval, result.p, result.detectable) == (None, None, False)


def by_counting(counts):
    """The sign-flip test's definition in whole numbers."""
    signs = itertools.product((-1, 1), repeat=len(counts))
    sums = [abs(sum(s * c for s, c in zip(choice, counts, strict=True))) for choice in signs]
    return sum(other >= abs(sum(counts)) for other in sums) / len(sums)


@pytest.mark.parametrize("images", [360, 1797, 5120, 10_000])
@pytest.mark.parametrize("seeds", range(1, 9))
def test_the_sign_flip_test_is_exact_with_ties(images, seeds):
    rng = np.random.default_rng(seeds)
    for _ in range(20):
        control, treatment = rng.integers(images - 4, images, (2, seeds))
        differences = treatment / images - control / images
        assert sign_flip(differences) == by_counting((treatment - control).tolist())


def test_sums_that_are_zero_on_paper_are_no_evidence():
    differences = [0.1, 0.2, -0.3]
    assert sum(differences) != 0
    assert sign_flip(differences) == 1


@pytest.mark.parametrize("seeds", [1, 2, 5, 10, 14])
def test_equal_differences_are_as_much_evidence_as_there_can_be(seeds):
    assert sign_flip([0.01] * seeds) == 2 / 2**seeds
    assert sign_flip([-0.01] * seeds) == 2 / 2**seeds


def test_no_differences_at_all_are_no_evidence():
    assert sign_flip([0.0] * 10) == 1


def test_more_differences_than_can_be_enumerated_are_judged_by_chance(monkeypatch):
    differences = np.random.default_rng(2).normal(0.5, 1, 12)
    exact = sign_flip(differences)
    monkeypatch.setattr(statistics, "MOST_SIGN_CHANGES", 2**11)
    assert sign_flip(differences) != exact
    assert sign_flip(differences) == pytest.approx(exact, abs=chance(exact, 2**11))
    assert sign_flip(differences) == sign_flip(differences)


def step_down(p_values):
    """Holm's definition: the smallest p times m, the next times m - 1, and never falling."""
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = adjusted[i] = max(least, min(1, (len(p_values) - rank) * p_values[i]))
    return adjusted


@pytest.mark.parametrize(
    "p_values",
    [[], [0.03], [0.04, 0.01, 0.02], [0.02, 0.02, 0.02], [0.9, 0.5], [0.0, 1.0], [0.03, 0.04]],
)
def test_holms_adjustment_is_his(p_values):
    assert holm(p_values) == pytest.approx(step_down(p_values))


@pytest.mark.parametrize("statistic", [estimate, sign_flip])
@pytest.mark.parametrize("values", [[], [float("nan")], [0.1, float("nan")], [0.1, float("inf")]])
def test_what_is_no_sample_is_refused(statistic, values):
    with pytest.raises(ValueError, match="one or more finite numbers, not"):
        statistic(values)


@pytest.mark.parametrize("p", [float("nan"), -0.1, 1.1])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(ValueError, match="p values lie between 0 and 1"):
        holm([0.5, p])


@pytest.mark.parametrize(
    ("interval", "detectable"),
    [((0.0, 0.2), False), ((-0.2, 0.0), False), ((0.01, 0.2), True), ((-0.2, -0.01), True)],
)
def test_an_interval_that_touches_zero_detects_nothing(interval, detectable):
    assert Estimate((0.1,), 0.1, interval, 0.05).detectable is detectable


def test_an_interval_with_blocks_pools_the_spread_inside_them():
    found = blocked({"a": [0.1, 0.3, 0.2], "b": [0.5, 0.7]})
    assert found.mean == pytest.approx(0.4)
    # s^2 = (0.02 + 0.02) / 3, of three values and two; t(0.975, 3) = 3.182446
    margin = 3.182446 * (0.04 / 3 * (1 / 3 + 1 / 2)) ** 0.5 / 2
    assert found.interval == pytest.approx((0.4 - margin, 0.4 + margin))
    assert blocked({"a": [0.1], "b": [0.7]}).interval is None
    assert blocked({"a": [0.1, 0.1], "b": [0.7, 0.7]}).interval is None


@pytest.mark.parametrize("blocks", [{}, {"a": []}])
def test_a_block_without_values_is_refused(blocks):
    with pytest.raises(ValueError, match=r"block|sample"):
        blocked(blocks)
