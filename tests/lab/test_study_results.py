"""From simulated records to the numbers and the sentence of a study."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from simulated import comparison, corrupted, failures_of, make_study, records_of, results_of

from rbnorm_lab.catalogue import maker
from rbnorm_lab.statistics import blocked, estimate, sign_flip
from rbnorm_lab.studies.results import ALPHA, Compared, controls
from rbnorm_lab.studies.sentences import answer
from rbnorm_lab.studies.variants import comparisons_of
from rbnorm_lab.studies.words import chinese
from rbnorm_lab.text import Text

BASE = (0.90, 0.91, 0.88, 0.92, 0.89, 0.90)
NOISE = (0.001, -0.002, 0.0, 0.002, -0.001, 0.0)


def accuracies(**effects):
    """BatchNorm's accuracies by seed, plus each other norm's effect and some noise."""
    return lambda arm, seed: (
        BASE[seed] + (effects[arm.label] + NOISE[seed] if arm.label in effects else 0.0)
    )


def found(study, accuracy, failures=(), **shifted):
    return results_of(study, records_of(study, accuracy, **shifted), failures)


def by_label(results):
    return {result.arm.label: result for result in results.arms}


def test_an_arm_is_paired_with_its_baseline_seed_by_seed():
    results = by_label(found(make_study(), accuracies(rbn=0.01, gn=-0.02)))
    differences = [0.01 + noise for noise in NOISE]
    gain = results["rbn"].gain["clean"]
    assert gain.estimate.mean == pytest.approx(np.mean(differences))
    assert gain.estimate.interval == pytest.approx(estimate(differences).interval)
    assert gain.p == sign_flip(differences) == 2 / 64
    assert results["gn"].gain["clean"].estimate.mean == pytest.approx(-0.02)
    assert results["bn"].gain == {}
    assert results["bn"].accuracy["clean"].values == BASE


def test_primary_comparisons_are_judged_by_the_t_test_where_the_study_says_so():
    study = make_study(primary=(comparison(),), seeds=tuple(range(5)), paired_t=True)
    (result,) = found(study, accuracies(rbn=0.01)).primary
    expected = ttest_1samp([0.01 + noise for noise in NOISE[:5]], 0).pvalue
    assert result.difference.p == pytest.approx(expected)
    assert result.adjusted == pytest.approx(expected)
    assert result.detectable
    assert result.resolvable
    (flipped,) = found(replace(study, paired_t=False), accuracies(rbn=0.01)).primary
    assert flipped.difference.p == 1 / 16
    assert not flipped.resolvable


@pytest.mark.parametrize(("seeds", "resolvable"), [(1, False), (2, True)])
def test_one_seed_tells_nothing_of_an_exploratory_comparison_either(seeds, resolvable):
    study = make_study(primary=(), others=(comparison(),), seeds=tuple(range(seeds)))
    (result,) = found(study, accuracies(rbn=0.01)).others
    assert result.resolvable == resolvable


def test_an_arm_of_few_seeds_misses_no_others():
    study = make_study()
    arms = tuple(replace(arm, seeds=2) if arm.label == "gn" else arm for arm in study.arms)
    results = found(replace(study, arms=arms), accuracies(rbn=0.01, gn=0.01))
    assert by_label(results)["gn"].missing == ()
    assert len(by_label(results)["gn"].accuracy["clean"].values) == 2
    assert results.complete_seeds == 6


def test_only_seeds_that_both_have_are_paired():
    def accuracy(arm, seed):
        return None if (arm.label, seed) in {("bn", 0), ("rbn", 5)} else BASE[seed]

    results = by_label(found(make_study(), accuracy))
    assert len(results["rbn"].accuracy["clean"].values) == 5
    assert len(results["rbn"].gain["clean"].estimate.values) == 4


def test_groups_are_kept_apart():
    study = make_study(groups=("whole", "half"))
    results = found(study, lambda arm, seed: BASE[seed] + (arm.group == "half") * 0.05)
    means = {(r.arm.group, r.arm.label): r.gain["clean"] for r in results.arms if r.gain}
    assert {name: gain.estimate.mean for name, gain in means.items()} == pytest.approx(
        dict.fromkeys(means, 0.0)
    )
    assert list(results.groups()) == ["whole", "half"]
    for name, own in results.groups().items():
        assert {result.arm.group for result in own} == {name}


def test_every_seed_is_done_failed_or_missing():
    study = make_study()
    failures = failures_of(study, "rbn", (0, 1))  # the second was run again and ended
    done = accuracies(rbn=0.0)
    results = found(
        study, lambda arm, seed: None if arm.label == "rbn" and seed in {0, 5} else done(arm, seed),
        failures,
    )  # fmt: skip
    rbn = by_label(results)["rbn"]
    assert (set(rbn.records), set(rbn.failures), rbn.missing) == ({1, 2, 3, 4}, {0}, (5,))
    assert (results.failed, results.complete_seeds) == (1, 5)


def test_records_of_other_studies_are_ignored():
    study, other = make_study(), make_study(seeds=(7, 8))
    records = records_of(study, accuracies()) | records_of(other, lambda arm, seed: 0.1)
    assert len(results_of(study, records).records) == 18


def test_mean_corruption_accuracy_is_over_kinds_and_severities_without_clean():
    study = make_study()
    results = found(
        study, accuracies(),
        shifted=lambda arm, seed: {"trained": corrupted(0.5, clean=0.9, noise=0.1)},
    )  # fmt: skip
    assert results.measures() == ["clean", "shifted"]
    assert by_label(results)["rbn"].accuracy["shifted"].mean == pytest.approx((7 * 0.5 + 0.1) / 8)


def shifts(arm, seed):
    """Statistics of the test batch bring BatchNorm 20 points; GroupNorm has none."""
    trained = {"trained": corrupted(0.5 + BASE[seed] / 10)}
    if arm.label == "gn":
        return trained
    return {**trained, "test-batch": corrupted(0.7 + BASE[seed] / 10 + NOISE[seed])}


def test_other_statistics_are_compared_with_those_of_training():
    results = found(make_study(), accuracies(), shifted=shifts)
    assert [(c.result.arm.label, c.statistics) for c in controls(results)] == [
        ("bn", "test-batch"),
        ("rbn", "test-batch"),
    ]
    assert controls(results)[0].gain.estimate.mean == pytest.approx(0.2)


PRIMARY = (comparison(), comparison("gn"), comparison("rbn", "shifted"))


def test_primary_comparisons_are_adjusted_for_their_number():
    results = found(make_study(PRIMARY), accuracies(rbn=0.01, gn=0.0), shifted=shifts)
    clean, gn, shifted = results.primary
    assert (clean.difference.p, clean.adjusted) == (2 / 64, pytest.approx(6 / 64))
    assert (gn.adjusted, shifted.adjusted) == (1, 1)
    assert not clean.detectable


def test_a_comparison_that_was_not_run_keeps_its_place_in_the_family():
    results = found(make_study(PRIMARY), accuracies(rbn=0.01, gn=0.01))
    clean, gn, shifted = results.primary
    assert shifted.difference is None
    assert clean.adjusted == gn.adjusted == pytest.approx(6 / 64)


def test_a_primary_answer_says_which_is_better():
    study = make_study((comparison(),))
    better = answer(found(study, accuracies(rbn=0.01)))
    low, high = (100 * end for end in estimate([0.01 + n for n in NOISE]).interval)
    assert better.en == (
        f"The clean one: rbn is more accurate than bn (+1.00 points, 95 % interval "
        f"[+{low:.2f}, +{high:.2f}], 6 seeds, Holm-adjusted p = 0.031)."
    )
    assert better.zh.startswith(
        f"clean 项：rbn 比 bn 更高（+1.00 个百分点，95% 区间 [+{low:.2f}, +{high:.2f}]"
    )
    worse = answer(found(study, accuracies(rbn=-0.01)))
    assert "rbn is less accurate than bn (−1.00" in worse.en
    assert "rbn 比 bn 更低（−1.00" in worse.zh


def test_a_primary_answer_says_when_nothing_is_detected():
    study = make_study((comparison(),))
    same = answer(found(study, accuracies(rbn=0.0)))
    assert "no detectable difference between rbn and bn (+0.00 points, 95 % interval [" in same.en
    assert "rbn 与 bn 之间没有可检测的差异（+0.00 个百分点，95% 区间 [" in same.zh


def test_an_exploratory_answer_names_what_is_better_worse_and_neither():
    study = make_study()
    said = answer(found(study, accuracies(gn=0.03, rbn=-0.01)))
    assert "(exploratory" in said.en
    assert "more accurate than the baseline: 1 (gn +3.00 [" in said.en
    assert "less accurate: 1 (rbn −1.00 [" in said.en
    assert "探索性" in said.zh
    assert "高于基线：1 个（gn +3.00 [" in said.zh
    neither = answer(found(study, accuracies(gn=0.0, rbn=0.0)))
    assert "no detectable difference: 2 (" in neither.en


def test_a_long_answer_names_rbn_first_and_then_the_largest():
    study = make_study(groups=("a", "b", "c"))
    said = answer(found(study, accuracies(gn=0.03, rbn=0.01)))
    named = said.en.partition("more accurate than the baseline: ")[2]
    assert [part.split(" +")[0] for part in named.split("; ")] == [
        "6 (a: rbn",
        "b: rbn",
        "c: rbn",
        "a: gn",
        "and 2 more).",
    ]


def test_the_answer_of_a_study_of_controls_says_what_they_do_for_the_baseline():
    study = make_study(controls=True)
    said = answer(found(study, accuracies(gn=0.0, rbn=0.0), shifted=shifts))
    assert "bn with statistics of the test batch against bn as trained" in said.en
    assert "+20.00 points" in said.en
    assert "rbn with statistics" not in said.en
    assert "bn 由训练时的统计量改用测试批统计量" in said.zh


def test_an_answer_says_how_much_was_run():
    study = make_study((comparison(),))
    assert answer(results_of(study)) == Text("Not run.", "未运行。")
    partial = found(study, lambda arm, seed: BASE[seed] if seed < 4 else None)
    assert answer(partial).en.startswith(
        "4 of 6 seeds are complete in every arm (failed runs: 0): "
    )
    assert answer(partial).zh.startswith(
        "6 个种子中有 4 个在所有实验组都已完成（失败的运行：0 次）："
    )
    alone = found(study, lambda arm, seed: BASE[seed] if arm.label == "rbn" else None)
    assert "the clean one: not run" in answer(alone).en


def test_one_seed_gives_no_interval_and_detects_nothing():
    study = make_study((comparison(),), seeds=(0,))
    said = answer(found(study, lambda arm, seed: 0.9 + 0.05 * (arm.label == "rbn")))
    assert "too few seeds to tell rbn from bn (+5.00 points, 95 % interval [n/a]" in said.en
    assert "1 seed, Holm-adjusted p = 1.000" in said.en


def test_a_further_comparison_may_test_its_control_with_other_statistics():
    others = comparisons_of(
        "whole", [("rbn", "gn", "shifted"), ("rbn", "bn", "shifted", "test-batch")]
    )
    study = make_study(others=others)

    def shifted(arm, seed):
        value = {"bn": 0.6, "gn": 0.7, "rbn": 0.65}[arm.label] + NOISE[seed] * (arm.label == "rbn")
        return {"trained": corrupted(value), "test-batch": corrupted(value + 0.2)}

    results = found(study, accuracies(), shifted=shifted)
    means = [other.difference.estimate.mean for other in results.others]
    assert means == pytest.approx([-0.05, -0.15])
    assert [other.detectable for other in results.others] == [True, True]
    said = answer(results).en
    assert "Mean accuracy under corruptions: rbn is less accurate than gn (−5.00 points" in said
    assert "rbn is less accurate than bn with statistics of the test batch (−15.00 points" in said


def test_a_primary_answer_has_its_control_in_the_same_box():
    others = comparisons_of("whole", [("rbn", "gn", "clean")])
    study = make_study((comparison(),), others=others)
    said = answer(found(study, accuracies(rbn=0.01, gn=0.01)))
    control = "control (exploratory): accuracy on clean test images: no detectable difference"
    assert f"; {control}" in said.en
    assert "；对照（探索性）：干净测试图像上的准确率：rbn 与 gn 之间没有可检测的差异" in said.zh


def test_names_of_arms_are_said_in_both_languages():
    for name in ("ablation", "init", "batch-size"):
        maker(name)  # a study brings its words
    assert chinese("both") == "两者都用"
    assert chinese("w_b = 2, gamma compensated") == "w_b = 2，补偿 γ"
    assert chinese("normalisation batch 4, sorted by class") == "归一化批量 4，按类别排序"
    assert chinese("rbn") == "rbn"


def test_a_further_comparison_that_was_not_run_is_left_out():
    study = make_study(others=comparisons_of("whole", [("rbn", "gn", "clean")]))
    results = found(study, lambda arm, seed: None if arm.label == "gn" else BASE[seed])
    assert results.others[0].difference is None
    assert "than gn" not in answer(results).en


@pytest.mark.parametrize(("adjusted", "detectable"), [(ALPHA, True), (0.0501, False)])
def test_a_p_value_of_alpha_itself_rejects(adjusted, detectable):
    assert Compared(comparison("a", "b"), None, adjusted, 1).detectable is detectable


def blocks():
    """Two targets as blocks: RBN wins four points on one and two on the other."""
    study = make_study(
        (comparison(group=None, measure="target"),),
        ("a", "b"),
        (0, 1, 2),
        blocks=True,
        others=(comparison("gn", measure="target", group=None),),
    )
    arms = [
        replace(a, config=replace(a.config, target=a.group, shift="trained")) for a in study.arms
    ]
    study = replace(study, arms=tuple(arms))

    def shifted(arm, seed):
        gain = {"rbn": {"a": 0.04, "b": 0.02}[arm.group]}.get(arm.label, 0.0)
        value = BASE[seed] / 2 + gain + (arm.label == "rbn") * NOISE[seed]
        return {"trained": {arm.group: value}, "test-batch": {arm.group: value + 0.1}}

    return lambda skip=(): results_of(
        study,
        records_of(study, lambda a, s: None if (a.group, a.label) in skip else BASE[s], shifted),
    )


def test_groups_that_are_blocks_count_alike_and_their_spread_is_pooled():
    results = blocks()()
    (primary,), (other,) = results.primary, results.others
    values = {"a": [0.04 + n for n in NOISE[:3]], "b": [0.02 + n for n in NOISE[:3]]}
    expected = blocked(values)
    assert primary.difference.estimate.mean == pytest.approx(expected.mean)
    assert primary.difference.estimate.interval == pytest.approx(expected.interval)
    assert primary.difference.p == sign_flip([*values["a"], *values["b"]])
    assert other.difference.estimate.mean == pytest.approx(0)
    rbn = next(total for total in results.totals if total.arm.label == "rbn")
    assert rbn.gain["target"].estimate.mean == pytest.approx(expected.mean)
    assert next(iter(results.groups())) == "all targets"
    said = answer(results)
    assert "rbn is more accurate than bn (+2.97 points" in said.en
    assert "6 pairs in 2 targets" in said.en
    assert "gn minus bn: +0.00 [" in said.en
    assert "2 个目标域共 6 对" in said.zh


def test_a_block_without_a_pair_leaves_no_mean_over_blocks():
    results = blocks()(skip={("b", "rbn")})
    assert results.primary[0].difference is None
    assert "target" not in next(t for t in results.totals if t.arm.label == "rbn").accuracy
    assert [control.result.arm.label for control in controls(results)] == ["bn", "gn"]
