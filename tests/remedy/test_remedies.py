"""``rbnorm.remedies``: planted faults, models without one, and what is left of the model."""

import copy
import json
import math
import sys

import pytest
import torch
from models import left_as_found
from planted import CLASSES, batches, images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rbnorm

SIZE = 40
RE_ESTIMATED = "statistics re-estimated on the second data"
OWN_MEAN = "each image's own mean set"
OF_THE_BATCH = f"statistics of the test batch, batches of {SIZE}"
MIXED = f"running and test batch statistics mixed, batches of {SIZE}"
TENT = f"TENT, batches of {SIZE}"


@pytest.fixture(scope="module")
def shares():
    """What ``on_trial`` was told while the result below came about."""
    return []


@pytest.fixture(scope="module")
def tried(_trained, first, second, shares):
    """All remedies for images in brighter light."""
    return rbnorm.remedies(
        copy.deepcopy(_trained),
        first,
        second,
        batch_sizes=(SIZE,),
        on_trial=lambda name, share: shares.append(share),
    )


def accuracy(model: nn.Module, data, prepare=lambda x: x) -> float:
    with torch.no_grad():
        right = [model(prepare(x)).argmax(1) == y for x, y in data]
    return float(torch.cat(right).double().mean())


def test_brighter_images_are_repaired_by_their_own_mean(model, first, second, tried) -> None:
    clean = tried.unchanged.first.value
    assert clean > 0.9
    assert tried.unchanged.second.value < clean - 0.3
    repaired = tried[OWN_MEAN]
    assert repaired.second.value == pytest.approx(clean, abs=0.02)
    assert repaired.difference.low > 0.3
    assert repaired in tried.helpful()
    assert (repaired.passes, repaired.needs_labels, repaired.needs_batches) == (0, False, False)
    assert not repaired.needs_data
    match = rbnorm.MatchMoments.of(first, "mean")
    assert repaired.second.value == pytest.approx(accuracy(model.eval(), second, match), abs=1e-12)


def test_differences_are_those_of_the_same_images(model, second, tried) -> None:
    row = tried[RE_ESTIMATED]
    base = accuracy(model.eval(), second)
    gain = accuracy(rbnorm.recalibrate(model, second), second) - base
    assert row.difference.value == pytest.approx(gain, abs=1e-12)
    assert row.difference.low <= row.difference.value <= row.difference.high


def test_the_unchanged_model_is_first_and_the_best_remedy_second(tried) -> None:
    gains = [row.difference.value for row in tried.rows[1:]]
    assert tried.rows[0].kind == "unchanged"
    assert tried.rows[0].difference == (0, 0, 0)
    assert gains == sorted(gains, reverse=True)
    with pytest.raises(KeyError, match="no remedy 'x'; there are as it is, "):
        tried["x"]


def test_statistics_of_the_test_batch_are_those_of_training(model, second, tried) -> None:
    row = tried[OF_THE_BATCH]
    assert row.second.value == pytest.approx(accuracy(model.train(), second), abs=1e-12)
    assert row.needs_batches
    assert not row.needs_data


def test_images_without_a_fault_have_no_remedy(model, first) -> None:
    result = rbnorm.remedies(model, first, batches(*images(200, 3)), batch_sizes=(64,))
    assert result.helpful() == ()
    assert abs(result.lost) < 0.06
    assert all(row.difference.low <= 0 for row in result.rows)
    assert all(row.kind != "moments" for row in result.rows)
    assert "already" in result.skipped["each image's own mean and contrast set"]


def test_without_labels_there_is_agreement_and_confidence(model, first, second, tried) -> None:
    result = rbnorm.remedies(
        model, [x for x, _ in first], [x for x, _ in second], batch_sizes=(SIZE,)
    )
    row = result[RE_ESTIMATED]
    assert math.isnan(row.second.value)
    assert math.isnan(row.difference.value)
    assert result.unchanged.agreement == (1, 1)
    assert 0 < row.agreement[1] < 1
    assert 1 / CLASSES < row.confidence[1] <= 1
    assert result.helpful() == ()
    assert "no accuracy on the second data" in result.notes[1]
    assert result[MIXED].weight == tried[MIXED].weight  # chosen without labels
    assert result[MIXED].weight in (0.25, 0.5, 0.75)


@pytest.mark.parametrize("key", ["labels", "label", "target"])
def test_batches_that_are_mappings_are_measured(model, first, second, tried, key: str) -> None:
    mapped = [[{"pixels": x, key: y} for x, y in batches] for batches in (first, second)]
    found = rbnorm.remedies(
        model, *mapped, batch_sizes=(SIZE,), forward=lambda model, batch: model(batch["pixels"])
    )
    assert [row.name for row in found.rows] == [row.name for row in tried.rows]
    assert [row.second for row in found.rows] == [row.second for row in tried.rows]
    assert found.notes == ()


def test_progress_ends_before_one(tried, shares) -> None:
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] < 1


def test_frame_and_json_have_a_row_a_remedy(tried, tmp_path) -> None:
    frame = tried.to_frame()
    columns = "remedy accuracy_first accuracy_second difference low high needs_labels needs_batches"
    assert {*columns.split(), "passes", "accuracy_first_low"} <= set(frame.columns)
    assert frame.remedy[0] == "as it is"
    assert frame.accuracy_second[1] == tried.rows[1].second.value
    tried.to_json(tmp_path / "remedies.json")
    found = json.loads((tmp_path / "remedies.json").read_text())
    assert [row["remedy"] for row in found["remedies"]] == list(frame.remedy)
    best, row = found["remedies"][1], tried.rows[1]
    assert (best["difference"], best["low"], best["high"]) == row.difference
    assert (best["agreement_first"], best["confidence_second"]) == (
        row.agreement[0], row.confidence[1]
    )  # fmt: skip


def test_a_printed_result_fits_a_terminal_and_needs_no_pandas(tried, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    lines = str(tried).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[-5:] == ["right", "won", "[95", "%", "interval]"]
    assert lines[1].startswith("as it is")
    assert f"{100 * tried.rows[1].second.value:.1f}" in lines[2]
    assert all(row.name.split(", batches")[0] in str(tried) for row in tried.rows)
    assert repr(tried) == str(tried)


def network_of(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, outputs))


def test_tables_have_remedies_too_and_regression_no_tent() -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    data = [(x, (x[:, 0] > 0).long())]
    result = rbnorm.remedies(network_of(2), data, data, batch_sizes=(16,))
    kinds = {"unchanged", "re-estimated", "test-batch", "mixed"}
    assert {row.kind for row in result.rows} == {*kinds, "tent"}
    assert list(result.skipped) == ["each image's own mean and contrast set"]
    data = [(x, x[:, :1])]
    result = rbnorm.remedies(network_of(1), data, data, batch_sizes=(16,))
    assert {row.kind for row in result.rows} == kinds
    assert result.skipped["TENT"] == "needs scores of two classes or more"
    assert "pass metric=" in result.notes[0]


def test_without_affine_parameters_tent_is_skipped(first) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False), nn.Flatten())
    result = rbnorm.remedies(model, first, first, batch_sizes=(SIZE,))
    assert "affine parameters" in result.skipped[TENT]


def unlucky(model, batch):
    raise RuntimeError("out of luck")


SHUFFLED = DataLoader(TensorDataset(*images(80, 4)), batch_size=16, shuffle=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda first: {"first": SHUFFLED}, "first must give the same instances in the same order"),
        (lambda first: {"second": iter(first)}, "second must be something to iterate over many"),
        (
            lambda first: {"metric": lambda output, target: output.mean()},
            "metric must return one number per instance",
        ),
        (lambda first: {"forward": unlucky}, "out of luck"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_the_model_as_found(
    model, first, second, change, message: str
) -> None:
    arguments = {"first": first, "second": second, "batch_sizes": (), **change(first)}
    with left_as_found(model), pytest.raises((ValueError, RuntimeError), match=message):
        rbnorm.remedies(model, **arguments)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda x: x - 3, "mean"),
        (lambda x: x.mean((1, 2, 3), keepdim=True).lerp(x, 0.3), "contrast"),
        (lambda x: 0.3 * x - 2, "mean and contrast"),
    ],
)
def test_what_is_set_is_what_differs(model, first, change, what: str) -> None:
    other = [(change(x), labels) for x, labels in first]
    result = rbnorm.remedies(model, first, other, batch_sizes=())
    assert [row.name for row in result.rows if row.kind == "moments"] == [
        f"each image's own {what} set"
    ]


@pytest.mark.parametrize("shape", [(2, 9), (3, 6, 6), (2, 3, 4, 5)])
def test_sequences_images_and_volumes_are_matched_whole_and_by_channel(shape) -> None:
    torch.manual_seed(0)
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(shape)]
    model = nn.Sequential(norm(shape[0]), nn.Flatten(), nn.LazyLinear(3))
    x, labels = torch.randn(20, *shape), torch.arange(20) % 3
    model(x)
    darker = x - torch.arange(20.0).view(-1, *(1,) * len(shape))
    first, second = [(x, labels)], [(darker, labels)]
    result = rbnorm.remedies(model, first, second, batch_sizes=())
    for whose, by_channel in (("image", False), ("channel", True)):
        row = result[f"each {whose}'s own mean set"]
        match = rbnorm.MatchMoments.of(first, "mean", by_channel=by_channel)
        assert row.second.value == pytest.approx(accuracy(model.eval(), second, match), abs=1e-12)
        assert (row.passes, row.needs_data) == (0, False)


def test_a_constant_channel_leaves_the_whole_image_to_be_matched(model, first) -> None:
    first = [(torch.cat([x, torch.ones_like(x)], 1), y) for x, y in first]
    model[0] = nn.Conv2d(2, 6, 3)
    result = rbnorm.remedies(model, first, [(x - 3, y) for x, y in first], batch_sizes=())
    kinds = [row.name for row in result.rows if row.kind == "moments"]
    assert kinds == ["each image's own mean set"]


def test_a_remedy_that_fails_is_skipped_and_the_others_stand(model, first, second) -> None:
    calls = []

    def forward(model, batch):
        calls.append(1)
        if len(calls) in (16, 41):
            raise RuntimeError("out of luck")
        return model(batch[0])

    with left_as_found(model):
        result = rbnorm.remedies(model, first, second, forward=forward)
    assert [why.count("out of luck") for why in result.skipped.values()] == [1, 1]
    assert len(result.rows) > 4


@pytest.mark.parametrize("convert", [False, True])
def test_fine_tuning_trains_copies_and_leaves_the_model_as_found(
    model, first, second, convert: bool
) -> None:
    model = rbnorm.convert_batchnorm(model) if convert else model
    model[1].eval()
    tuning = rbnorm.FineTuning(second, steps=20, lr=0.05)
    with left_as_found(model):
        result = rbnorm.remedies(model, first, second, fine_tuning=tuning, batch_sizes=(SIZE,))
    tuned = {row.name: row for row in result.rows if row.kind == "fine-tuned"}
    also = [] if convert else ["fine-tuned converted to RBN, 20 steps"]
    assert {*tuned} == {"fine-tuned as it is, 20 steps", *also}
    for row in tuned.values():
        assert row.needs_labels
        assert row.difference.low > 0.3
    assert result[TENT].difference.low > 0.3
    assert result[TENT].needs_batches


def test_both_fine_tunings_see_the_same_augmented_images(model, first, second) -> None:
    class Noisy:
        def __init__(self) -> None:
            self.seen = []

        def __iter__(self):
            for i in torch.randperm(len(first)).tolist():
                images = first[i][0] + torch.randn(first[i][0].shape)
                self.seen.append(images)
                yield images, first[i][1]

    noisy = Noisy()
    rbnorm.remedies(model, first, second, fine_tuning=rbnorm.FineTuning(noisy, 3), batch_sizes=())
    assert len(noisy.seen) == 6
    for plain, converted in zip(noisy.seen[:3], noisy.seen[3:], strict=True):
        assert torch.equal(plain, converted)


def test_a_metric_of_ones_own(model, first, second) -> None:
    def probability(output, target):
        return output.softmax(1).gather(1, target[:, None])[:, 0]

    result = rbnorm.remedies(model, first, second, metric=probability)
    with torch.no_grad():
        expected = torch.cat([probability(model.eval()(x), y) for x, y in first]).double().mean()
    assert result.unchanged.first.value == pytest.approx(float(expected), abs=1e-7)
    assert result[RE_ESTIMATED].difference.low > 0


class Segmenter(nn.Module):
    """A class for every position, in the form of torchvision's segmentation models."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        return {"out": self.norm(x), "aux": x}


def test_positions_of_a_segmentation_are_counted_but_for_void_ones() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2, 3, 3)
    target = x.argmax(1)
    target[:, 0] = 1 - target[:, 0]  # a third is wrong
    target[:, 1] = 255  # a third is void
    target[5] = 255  # and an image altogether
    data = [(x, target)]
    tuning = rbnorm.FineTuning(data, steps=1)
    result = rbnorm.remedies(Segmenter(), data, data, batch_sizes=(), fine_tuning=tuning)
    assert result.unchanged.first.value == pytest.approx(0.5, abs=1e-12)
    assert "fine-tuned as it is, 1 steps" not in result.skipped


def test_what_does_not_fit_the_budget_is_named(model, first, second) -> None:
    result = rbnorm.remedies(model, first, second, budget=0)
    assert [row.kind for row in result.rows] == ["unchanged"]
    assert "more than is left" in result.skipped[RE_ESTIMATED]


def test_data_sorted_by_class_is_said(model, first) -> None:
    x, labels = images(200, 2)
    order = labels.argsort()
    result = rbnorm.remedies(model, first, batches(x[order], labels[order]), batch_sizes=())
    assert len(result.notes) == 1
    assert "second data is sorted" in result.notes[0]


def test_fine_tuning_on_nothing_ends_and_says_so(model, first, second) -> None:
    tuning = rbnorm.FineTuning([], steps=2)
    result = rbnorm.remedies(model, first, second, batch_sizes=(), fine_tuning=tuning)
    why = result.skipped["fine-tuned as it is, 2 steps"]
    assert why == "fine_tuning.batches must give at least one batch, got none"


def test_fine_tuning_that_cannot_be_is_refused(first) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        rbnorm.FineTuning(first, steps=0)
    with pytest.raises(ValueError, match="batches must be something to iterate over many times"):
        rbnorm.FineTuning(iter(first), steps=2)
