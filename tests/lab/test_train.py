from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from support import CONFIG
from torch import nn

from rbnorm.lab import train
from rbnorm.lab.data import load_data
from rbnorm.lab.errors import UsageError
from rbnorm.lab.train import check_run, make_loaders, train_run

SMALL = replace(CONFIG, epochs=1, limit=200, batch_size=50)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", limit=200)


@pytest.fixture(autouse=True)
def _fresh_state():
    """A process has one precision for good: forget it between tests."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def metrics(record):
    return [replace(epoch, seconds=0.0) for epoch in record.epochs], record.channel_mean_std


def test_the_same_config_gives_the_same_metrics(digits):
    config = replace(SMALL, norm="rbn")
    assert metrics(train_run(config, digits)) == metrics(train_run(config, digits))


def test_another_seed_gives_other_metrics(digits):
    assert metrics(train_run(SMALL, digits)) != metrics(train_run(replace(SMALL, seed=1), digits))


def test_every_norm_of_a_seed_sees_the_same_batches(digits):
    def batches(norm):
        loader, _ = make_loaders(replace(SMALL, norm=norm), digits)
        return [torch.cat([images for images, _ in loader]) for _ in range(2)]

    first, other = batches("bn"), batches("rbn")
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])  # but every epoch has an order of its own


def test_the_batches_that_reach_the_model_do_not_depend_on_the_norm(digits, monkeypatch):
    seen = {}
    build = train.build_model

    def watched(name, norm, **options):
        model = build(name, norm, **options)
        model.register_forward_pre_hook(
            lambda _, inputs: seen.setdefault(norm, []).append(inputs[0].clone())
        )
        return model

    monkeypatch.setattr(train, "build_model", watched)
    for norm in ("bn", "gn", "rbn"):
        train_run(replace(SMALL, norm=norm), digits)
    for norm in ("gn", "rbn"):
        assert all(torch.equal(a, b) for a, b in zip(seen["bn"], seen[norm], strict=True))


def test_a_record_describes_its_run(digits):
    steps = []
    record = train_run(replace(SMALL, norm="rbn", epochs=2), digits, lambda: steps.append(1))
    assert len(steps) == 2 * 4
    assert len(record.epochs) == 2
    assert record.epochs[1].train_loss < record.epochs[0].train_loss
    assert record.accuracy == record.epochs[1].test_accuracy
    assert round(record.accuracy * 500, 9) == int(record.accuracy * 500 + 0.5)
    assert len(record.channel_mean_std) == 9
    assert set(record.calibration["bn1"]) == {"center_weight", "scale_weight", "scale_bias"}
    assert record.environment["torch"] == torch.__version__.split("+")[0]
    assert (record.device, record.diverged) == ("cpu", False)


def test_a_run_that_diverges_says_so(digits):
    record = train_run(replace(SMALL, lr=1e30), digits)
    assert record.diverged
    assert record.epochs[-1].train_loss is None
    assert 0 <= record.accuracy < 0.3


def test_bfloat16_trains_to_nearly_the_same_loss(digits):
    full = train_run(SMALL, digits)
    AcceleratorState._reset_state(reset_partial_state=True)
    half = train_run(replace(SMALL, mixed_precision="bf16"), digits)
    assert half.epochs[0].train_loss == pytest.approx(full.epochs[0].train_loss, rel=0.1)
    assert half.epochs[0].train_loss != full.epochs[0].train_loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 201}, "batch size 201 is more than the 200 training images of digits"),
        (
            {"model": "torchvision:resnet18", "norm": "in"},
            "torchvision:resnet18 with norm 'in' and batch size 50 cannot take the images",
        ),
    ],
)
def test_what_cannot_be_trained_is_known_beforehand(digits, change, message):
    config = replace(SMALL, **change)
    images = digits if config.model == CONFIG.model else load_data("digits", rgb=True)
    with pytest.raises(UsageError, match=message):
        check_run(config, images, torch.device("cpu"))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Linear(64, 4), "the head of cifar-resnet8 has 4 classes, fewer than the 10 of digits"),
        (nn.Sequential(nn.Linear(64, 10), nn.Unflatten(1, (10, 1))), "is no classifier"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(digits, monkeypatch, head, message):
    def narrow(*_, **__):
        return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), head)

    monkeypatch.setattr(train, "build_model", narrow)
    with pytest.raises(UsageError, match=message):
        check_run(SMALL, digits, torch.device("cpu"))
