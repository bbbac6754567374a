"""Accuracy under corruptions, with the statistics of training and with others."""

from dataclasses import replace

import pytest
import torch
from support import CONFIG
from torch import nn

from rbnorm_lab import shift
from rbnorm_lab.config import CLEAN, CONDITIONS
from rbnorm_lab.corruptions import corrupt
from rbnorm_lab.data import load_data
from rbnorm_lab.models import build_model
from rbnorm_lab.shift import mean_corruption_accuracy, shifted_accuracy
from rbnorm_lab.train import train_run

CPU = torch.device("cpu")


def measured(model, data, asked, *conditions):
    config = replace(CONFIG, shift=asked, conditions=conditions)
    return shifted_accuracy(model, config, data, CPU)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def model(digits):
    models = []
    config = replace(CONFIG, epochs=3, batch_size=32, lr=0.05, trace=False)
    train_run(config, digits, on_trained=models.append)
    return models[0].eval()


@pytest.fixture(scope="module")
def found(model, digits):
    return measured(model, digits, "controls")


def literally(model, digits, kind, severity):
    """Accuracy on all digits, corrupted in one go from what the raw images are."""
    images = digits.test.tensors[0]
    raw = images if kind is None else corrupt(images[order(digits)], kind, severity, 0)
    labels = digits.test.tensors[1] if kind is None else digits.test.tensors[1][order(digits)]
    scores = model((raw - digits.mean[0]) / digits.std[0])
    return (scores.argmax(1) == labels).double().mean().item()


def order(digits):
    return torch.randperm(len(digits.test), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "condition", [CLEAN, "noise/3", "contrast/5", "jpeg/1", "elastic/5", "pixelate/5"]
)
def test_an_accuracy_is_that_of_the_corrupted_images(found, model, digits, condition):
    kind, _, severity = condition.partition("/")
    expected = literally(model, digits, kind if severity else None, int(severity or 0))
    # standardising and back rounds, and jpeg has steps: at most one of 500 images may differ
    assert found["trained"][condition] == pytest.approx(expected, abs=1.5 / 500)


def test_corruption_costs_accuracy(found):
    trained = found["trained"]
    assert trained[CLEAN] > 0.9
    assert mean_corruption_accuracy(trained) < trained[CLEAN] - 0.02
    assert mean_corruption_accuracy({c: float(c != CLEAN) for c in CONDITIONS}) == 1


def test_statistics_of_the_test_batch_are_those_of_250_images(found, model, digits):
    images, labels = (tensor[order(digits)] for tensor in digits.test.tensors)
    copy = build_model("cifar-resnet8", "bn", classes=10, channels=1, seed=0)
    copy.load_state_dict(model.state_dict())
    right = 0
    for part in range(2):
        some = slice(250 * part, 250 * part + 250)
        changed = corrupt(images[some], "contrast", 5, 0, first=250 * part)
        with torch.no_grad():
            scores = copy.train()((changed - digits.mean[0]) / digits.std[0])
        right += int((scores.argmax(1) == labels[some]).sum())
    assert found["test-batch"]["contrast/5"] == pytest.approx(right / 500, abs=1.5 / 500)


def test_testing_leaves_the_model_as_it_is(model, digits):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured(model, digits, "controls", "contrast/5")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_controls_are_for_models_with_batch_statistics(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert list(measured(model, digits, "controls")) == ["trained"]


def test_only_the_conditions_that_are_asked_for_are_measured(found, model, digits):
    some = measured(model, digits, "trained", "contrast/5")
    assert some == {"trained": {c: found["trained"][c] for c in (CLEAN, "contrast/5")}}


@pytest.mark.parametrize(("name", "size"), [("test-batch-64", 64), ("test-batch-8", 8)])
def test_all_images_are_tested_in_small_batches(model, digits, name, size):
    found = measured(model, digits, "whole-controls")
    assert list(found) == ["trained", "test-batch-64", "test-batch-8"]
    images, labels = (tensor[order(digits)] for tensor in digits.test.tensors)
    changed = (corrupt(images, "contrast", 5, 0) - digits.mean[0]) / digits.std[0]
    copy = build_model("cifar-resnet8", "bn", classes=10, channels=1, seed=0).train()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        scores = torch.cat([copy(part) for part in changed.split(size)])
    right = int((scores.argmax(1) == labels).sum())
    assert found[name]["contrast/5"] == pytest.approx(right / 500, abs=1.5 / 500)
    assert found["trained"]["contrast/5"] == pytest.approx(
        literally(model, digits, "contrast", 5), abs=1.5 / 500
    )


def test_stored_images_give_the_same_and_are_corrupted_once(model, digits, tmp_path, monkeypatch):
    plain = measured(model, digits, "whole")
    stored = replace(digits, folder=tmp_path / "digits")
    assert measured(model, stored, "whole") == plain
    assert len(list(tmp_path.glob("digits-corrupted/*/*"))) == len(CONDITIONS) - 1
    monkeypatch.setattr(shift, "Corrupted", None)
    assert measured(model, stored, "whole") == plain


def test_images_too_many_to_keep_give_the_same(found, model, digits, monkeypatch):
    monkeypatch.setattr(shift, "_KEPT_BYTES", 0)
    assert measured(model, digits, "trained")["trained"] == found["trained"]
