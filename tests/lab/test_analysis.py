import numpy as np
import pytest
from support import make_record

from rbnorm_lab import analysis
from rbnorm_lab.analysis import summarise
from rbnorm_lab.statistics import Estimate, estimate


def study(effect, noise, seeds=8):
    """BatchNorm's accuracy varies a lot with the seed, RBN's follows it."""
    rng = np.random.default_rng(1)
    base = 0.9 + 0.05 * rng.standard_normal(seeds)
    return [
        make_record(accuracy=accuracy, norm=norm, seed=seed)
        for seed in range(seeds)
        for norm, accuracy in (
            ("bn", float(base[seed])),
            ("rbn", float(base[seed] + effect + noise * rng.standard_normal())),
        )
    ]


def test_pairing_by_seed_finds_an_effect_smaller_than_the_spread_over_seeds():
    bn, rbn = summarise(study(effect=0.01, noise=0.002))
    assert bn.gain is None
    assert rbn.gain.mean == pytest.approx(0.01, abs=0.002)
    assert rbn.gain.detectable
    assert rbn.gain.p < 0.001


def test_the_answer_says_when_nothing_is_detected():
    rows = summarise(study(effect=0.0, noise=0.01))
    assert "no detectable difference between rbn and BN" in analysis.answer(rows).en


def test_the_answer_says_which_is_better():
    assert "rbn is more accurate than BN (+" in analysis.answer(summarise(study(0.01, 0.002))).en
    assert "rbn is less accurate than BN (−" in analysis.answer(summarise(study(-0.01, 0.002))).en


def test_one_seed_is_no_evidence():
    sentence = analysis.answer(summarise(study(0.01, 0.002, seeds=1))).en
    assert "one seed cannot tell it from chance" in sentence


def test_a_study_without_batchnorm_says_so():
    rows = summarise([make_record(norm="rbn")])
    assert rows[0].gain is None
    assert analysis.answer(rows).en.startswith("This study has no runs of both rbn and bn")


def test_only_seeds_that_both_have_are_paired():
    records = [r for r in study(0.01, 0.002) if (r.config.norm, r.config.seed) != ("bn", 3)]
    rbn = summarise(records)[1]
    assert (len(rbn.accuracy.values), len(rbn.gain.values)) == (8, 7)


def test_batch_sizes_are_kept_apart():
    records = [
        make_record(accuracy=accuracy, norm=norm, batch_size=size)
        for size, norm, accuracy in [
            (8, "bn", 0.5),
            (8, "rbn", 0.6),
            (64, "bn", 0.9),
            (64, "rbn", 0.7),
        ]
    ]
    gains = {r.batch_size: r.gain.mean for r in summarise(records) if r.gain}
    assert gains == {64: pytest.approx(-0.2), 8: pytest.approx(0.1)}


def test_numbers_in_words():
    result = Estimate((0.9, 0.92), 0.91, (0.78294, 1.03706), 0.0004)
    assert analysis.with_margin(result) == "91.00 ± 12.71"
    assert analysis.with_interval(result) == "+91.00 (+78.29 to +103.71)"
    assert analysis.p_value(result.p) == "<0.001"
    assert analysis.with_margin(estimate([0.5])) == "50.00 ± n/a"
    assert analysis.with_interval(estimate([-0.5])) == "−50.00 (n/a)"
    assert analysis.p_value(None) == "n/a"


def test_the_chinese_answer_says_the_same():
    assert "rbn 的准确率高于 BN（+" in analysis.answer(summarise(study(0.01, 0.002))).zh
    assert "rbn 的准确率低于 BN（−" in analysis.answer(summarise(study(-0.01, 0.002))).zh
    assert "只有一个种子" in analysis.answer(summarise(study(0.01, 0.002, seeds=1))).zh
