from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from support import CONFIG
from torch import nn
from torch.optim import SGD

from rbnorm_lab import train
from rbnorm_lab.data import first_images, load_data
from rbnorm_lab.errors import UsageError
from rbnorm_lab.train import check_run, train_run
from rbnorm_lab.training.order import parts_of

SMALL = replace(CONFIG, epochs=1, limit=200, batch_size=50)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", limit=200)


def metrics(record):
    return [replace(epoch, seconds=0.0) for epoch in record.epochs], record.channel_mean_std


def test_the_same_config_gives_the_same_metrics_and_another_seed_others(digits):
    config = replace(SMALL, norm="rbn")
    first, again, other = (train_run(c, digits) for c in (config, config, replace(config, seed=1)))
    assert metrics(first) == metrics(again) != metrics(other)


@pytest.fixture
def inputs(monkeypatch):
    """Every batch that reaches a model in training."""
    seen = []
    build = train.build_model

    def watched(*arguments, **options):
        model = build(*arguments, **options)
        model.register_forward_pre_hook(
            lambda module, given: seen.append(given[0].clone()) if module.training else None
        )
        return model

    monkeypatch.setattr(train, "build_model", watched)
    return seen


def test_the_batches_that_reach_the_model_do_not_depend_on_the_norm(digits, inputs):
    for norm in ("bn", "gn", "rbn"):
        train_run(replace(SMALL, norm=norm, epochs=2), digits)
    first, *others = torch.cat(inputs).chunk(3)
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(*first.chunk(2))  # but every epoch has an order of its own


def test_a_batch_is_cut_into_parts_that_are_normalised_apart(digits, inputs):
    train_run(SMALL, digits)
    whole = torch.cat(inputs)
    inputs.clear()
    train_run(replace(SMALL, norm_batch=10), digits)
    assert [len(part) for part in inputs] == [10] * 20
    assert torch.equal(torch.cat(inputs), whole)


def test_a_sorted_batch_is_cut_by_class_into_parts_of_random_order():
    labels = torch.tensor([3, 1, 2, 1, 0, 3])
    images = torch.arange(6.0).view(6, 1, 1, 1)
    config = replace(SMALL, norm_batch=2, batch_size=6, sorted_batches=True)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        parts = parts_of(images, labels, config, generator)
        assert sorted(part[1].tolist() for part in parts) == [[0, 1], [1, 2], [3, 3]]
        assert sorted(part[0].flatten().tolist() for part in parts) == [[0, 5], [3, 2], [4, 1]]
        seen.add(tuple(part[1][0].item() for part in parts))
    assert len(seen) == 6  # every order of the parts


def test_weight_decay_can_leave_out_the_calibration(digits, monkeypatch):
    groups = []
    monkeypatch.setattr(
        torch.optim, "SGD", lambda g, *_, **o: (groups.append(list(g)), SGD(groups[-1], *_, **o))[1]
    )
    for decay in (True, False):
        train_run(replace(SMALL, norm="rbn", decay_calibration=decay), digits)
    assert [group["weight_decay"] for group in groups[0]] == [SMALL.weight_decay]
    decays = {group["name"]: group["weight_decay"] for group in groups[1]}
    assert decays.pop("calibration") == 0
    assert set(decays.values()) == {SMALL.weight_decay}
    assert sum(len(group["params"]) for group in groups[1]) == len(groups[0][0]["params"])


def test_a_network_trained_with_batchnorm_is_converted_with_its_function(digits):
    config = replace(SMALL, pretrain_epochs=2, lr=1e-9)
    scores = [train_run(replace(config, norm=norm), digits) for norm in ("bn", "rbn:preserve=yes")]
    assert scores[0].accuracy == scores[1].accuracy > 0.2
    assert len(scores[1].epochs) == 1
    assert "center_weight" in scores[1].calibration["bn1"]


def test_without_a_trace_only_the_last_epoch_is_tested(digits):
    traced, short = (train_run(replace(SMALL, epochs=2, trace=t), digits) for t in (True, False))
    assert short.epochs[0].test_accuracy is None
    assert short.accuracy == traced.accuracy
    assert short.channel_mean_std == {}


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


def test_a_trained_model_is_measured_in_the_precision_of_its_training(digits):
    seen = []

    def measure(model, config, data, device):
        model.conv1.register_forward_hook(lambda conv, x, y: seen.append(y.dtype))
        model(first_images(data.test, 2)[0])
        return {}

    AcceleratorState._reset_state(reset_partial_state=True)
    train_run(replace(SMALL, mixed_precision="bf16", shift="trained"), digits, measure=measure)
    assert seen == [torch.bfloat16]


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
