"""The three lines that a diagnosis begins with, on results that leave no doubt."""

import math

import pytest

from rbnorm import Remedies, Remedy
from rbnorm.remedy import Interval
from rbnorm_lab.verdict import accuracy, needs, points, recommended, remedy_name, verdict

NOWHERE = Interval(math.nan, math.nan, math.nan)


def around(value: float) -> Interval:
    return Interval(value, value - 0.02, value + 0.02)


def remedy(name: str, kind: str, first: float, second: float, base: float, **options) -> Remedy:
    defaults = {"needs_labels": False, "needs_data": False, "needs_batches": False, "passes": 0}
    return Remedy(
        name=name,
        kind=kind,
        first=around(first),
        second=around(second),
        difference=around(second - base) if kind != "unchanged" else Interval(0, 0, 0),
        agreement=(1.0, 0.5),
        confidence=(0.9, 0.6),
        seconds=1.0,
        **{**defaults, **options},
    )


def result(first: float, second: float, *others: Remedy) -> Remedies:
    unchanged = remedy("as it is", "unchanged", first, second, second)
    return Remedies((unchanged, *others), (100, 100))


def re_estimated(second: float, base: float) -> Remedy:
    return remedy(
        "statistics re-estimated on the second data", "re-estimated", 0.8, second, base,
        needs_data=True, passes=1,
    )  # fmt: skip


def tuned(second: float, base: float, *, rbn: bool) -> Remedy:
    name = "fine-tuned converted to RBN, 10 steps" if rbn else "fine-tuned as it is, 10 steps"
    return remedy(name, "fine-tuned", 0.8, second, base, needs_labels=True)


def test_the_loss_comes_first_with_both_accuracies() -> None:
    line = verdict(result(0.9, 0.6))[0]
    assert line.en == (
        "The second data costs 30.0 points: 90.0 [88.0, 92.0] % on the first, "
        "60.0 [58.0, 62.0] % on it."
    )
    assert "30.0 个百分点" in line.zh


def test_a_model_that_loses_nothing_has_nothing_to_repair() -> None:
    lines = verdict(result(0.9, 0.895, re_estimated(0.895, 0.895)))
    assert lines[0].en.startswith("Nothing to repair: 90.0")
    assert lines[1].en.startswith("No remedy that was tried helps beyond doubt")


def test_the_best_remedy_comes_with_its_gain_and_price() -> None:
    line = verdict(result(0.9, 0.6, re_estimated(0.75, 0.6)))[1]
    assert line.en == (
        "Best: statistics re-estimated on the second data: +15.0 [+13.0, +17.0] points, 50 % of "
        "the loss; it needs unlabelled images of the second kind, and here they are the images "
        "that it is tested on."
    )
    assert "在第二个数据集上重新估计统计量" in line.zh
    assert "挽回损失的 50 %" in line.zh


def test_more_than_the_loss_is_the_whole_loss() -> None:
    line = verdict(result(0.9, 0.6, re_estimated(0.93, 0.6)))[1]
    assert "+33.0 [+31.0, +35.0] points, the whole loss;" in line.en
    assert "挽回了全部损失" in line.zh


def test_a_remedy_that_takes_less_and_wins_as_much_is_preferred() -> None:
    tent = remedy("TENT, batches of 64", "tent", 0.8, 0.754, 0.6, needs_batches=True, batch_size=64)
    tried = result(0.9, 0.6, tent, re_estimated(0.75, 0.6))
    assert "statistics re-estimated" in verdict(tried)[1].en
    assert recommended(tried) is tried.rows[2]
    assert recommended(result(0.9, 0.6)) is None


@pytest.mark.parametrize(
    ("rbn", "plain", "others", "said"),
    [
        (0.70, 0.65, 0.75, "it has 70.0 %; statistics re-estimated on the second data: 75.0 %"),
        (0.70, 0.70, 0.62, "it has 70.0 %; fine-tuned as it is, 10 steps: 70.0 %"),
        (0.70, 0.64, 0.62, "RBN, fine-tuned, is 6.0 points ahead of BatchNorm fine-tuned alike"),
    ],
)
def test_when_rbn_is_the_remedy_and_when_not(rbn, plain, others, said) -> None:
    rows = (re_estimated(others, 0.6), tuned(rbn, 0.6, rbn=True), tuned(plain, 0.6, rbn=False))
    assert said in verdict(result(0.9, 0.6, *rows))[2].en


def test_rbn_that_was_not_tried_is_said() -> None:
    assert "RBN was not tried" in verdict(result(0.9, 0.6))[2].en
    assert len(verdict(result(0.9, 0.6), convertible=False)) == 2


def test_without_labels_there_is_no_accuracy() -> None:
    base = result(0.9, 0.6).unchanged
    blind = Remedy(**{**vars(base), "first": NOWHERE, "second": NOWHERE})
    (line,) = verdict(Remedies((blind,), (100, 100)))
    assert line.en.startswith("Without labels no accuracy can be told; the mean confidence is 90.0")


def test_numbers_of_nothing_are_a_dash() -> None:
    assert accuracy(NOWHERE) == points(NOWHERE) == "–"
    assert points(Interval(-0.051, -0.1, 0.0004)) == "−5.1 [−10.0, 0.0]"


@pytest.mark.parametrize(
    "row",
    [
        re_estimated(0.7, 0.6),
        tuned(0.7, 0.6, rbn=True),
        remedy("statistics of the test batch, batches of 4", "test-batch", 1, 1, 1, batch_size=4),
        remedy("mixed", "mixed", 1, 1, 1, batch_size=4),
        remedy("each image's own mean and contrast set", "moments", 1, 1, 1),
    ],
)
def test_every_remedy_has_a_chinese_name(row) -> None:
    assert any("\u4e00" <= letter <= "\u9fff" for letter in remedy_name(row).zh)
    assert needs(row).zh
