"""Frozen layers stay frozen, and the optimizer's groups hold what they are named after."""

import copy
import io
from typing import Any

import pytest
import torch
from models import shake
from torch import nn

import rbnorm

CALIBRATION = ("center_weight", "scale_weight", "scale_bias")


def model(kind: Any = nn.BatchNorm2d) -> nn.Sequential:
    """A convolution and a norm whose running statistics are far from the batch's."""
    torch.manual_seed(0)
    found = shake(nn.Sequential(nn.Conv2d(2, 4, 3), kind(4), nn.Dropout(0.5)))
    return rbnorm.convert_batchnorm(found, center_weight_init=0.2, preserve=False).double()


X = torch.randn(3, 2, 5, 5, dtype=torch.float64)


def test_frozen_layer_is_in_evaluation_whatever_train_says() -> None:
    """It computes, and has the gradients of, what it computes there, and keeps its statistics."""
    net = rbnorm.freeze(model())
    before, evaluated = copy.deepcopy(net[1].state_dict()), copy.deepcopy(net).eval()
    assert torch.equal(net.train()[:2](X), evaluated[:2](X))
    assert net[1].training
    assert net[2].training
    assert all(torch.equal(value, before[name]) for name, value in net[1].state_dict().items())
    for each in (net[:2], evaluated[:2]):
        each(X).square().sum().backward()
    for ours, expected in zip(net.parameters(), evaluated.parameters(), strict=True):
        assert torch.equal(ours.grad, expected.grad)
    assert net[1].scale_weight.grad.abs().min() > 0


def test_one_value_per_channel_is_accepted_when_frozen() -> None:
    net = rbnorm.freeze(rbnorm.RepresentativeBatchNorm2d(4)).train()
    assert net(torch.ones(1, 4, 1, 1)).shape == (1, 4, 1, 1)


def through_pickle(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "operation",
    [
        copy.deepcopy,
        through_pickle,
        rbnorm.convert_sync,
        lambda net: rbnorm.convert_as_recorded(model(nn.BatchNorm2d), rbnorm.record_layers(net)),
        lambda net: rbnorm.revert_batchnorm(rbnorm.unfreeze(net), X).model,
    ],
    ids=["copy", "pickle", "sync", "record", "revert"],
)
def test_what_was_set_after_construction_is_kept(operation: Any) -> None:
    net = rbnorm.freeze(model())
    net[1].eps, net[1].momentum = 0.5, 0.25
    found = operation(net).train()
    assert (found[1].eps, found[1].momentum) == (0.5, 0.25)
    before = found[1].running_mean.clone()
    found(X)
    frozen = isinstance(found[1], rbnorm.RepresentativeBatchNorm2d)
    assert torch.equal(found[1].running_mean, before) == frozen
    assert ("frozen_stats=True" in repr(found)) == frozen


def test_state_dict_does_not_know() -> None:
    net, free = rbnorm.freeze(model()), model()
    assert net.state_dict().keys() == free.state_dict().keys()
    net.load_state_dict(free.state_dict())
    assert net[1].frozen_stats
    free.load_state_dict(net.state_dict())
    assert not free[1].frozen_stats


def test_statistics_are_not_reset_behind_the_back() -> None:
    """``update_bn`` would otherwise leave a frozen layer without statistics."""
    net = nn.Sequential(*rbnorm.freeze(model()), nn.BatchNorm2d(4).double())
    before, other = net[1].running_var.clone(), net[3].running_var.clone()
    for update in (
        lambda: torch.optim.swa_utils.update_bn([X], net),
        lambda: rbnorm.recalibrate(net, [X]),
    ):
        net[3].running_var.copy_(other)
        update()
        assert torch.equal(net[1].running_var, before)
        assert not torch.equal(net[3].running_var, other)


def test_unfreeze_tracks_again() -> None:
    net, free = rbnorm.unfreeze(rbnorm.freeze(model())), model()
    for each in (net, free):
        each(X)
    assert torch.equal(net[1].running_mean, free[1].running_mean)
    assert net[1].num_batches_tracked == 1
    assert repr(net) == repr(free)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("calibration", [True, False])
def test_parameters_are_frozen_by_kind(affine: bool, calibration: bool) -> None:
    net = rbnorm.freeze(model(), stats=False, affine=affine, calibration=calibration).train()
    wanted = {name: not calibration for name in CALIBRATION} | dict.fromkeys(
        ("weight", "bias"), not affine
    )
    assert {n: p.requires_grad for n, p in net[1].named_parameters()} == wanted
    assert all(p.requires_grad for p in net[0].parameters())
    assert not net[1].frozen_stats
    rbnorm.unfreeze(net, stats=False, affine=affine, calibration=calibration)
    assert all(p.requires_grad for p in net.parameters())


def test_freeze_leaves_what_it_is_not_asked_for() -> None:
    net = model()
    net[1].bias.requires_grad_(False)
    rbnorm.freeze(net)
    assert not net[1].bias.requires_grad
    constant = rbnorm.convert_batchnorm(nn.BatchNorm2d(4, affine=False))
    assert not rbnorm.unfreeze(constant, affine=True).weight.requires_grad


def test_layer_without_statistics_is_refused() -> None:
    net = nn.Sequential(
        rbnorm.RepresentativeBatchNorm2d(4),
        rbnorm.RepresentativeBatchNorm2d(4, track_running_stats=False),
    )
    with pytest.raises(ValueError, match="layer '1' has no running statistics to freeze"):
        rbnorm.freeze(net)
    assert not net[0].frozen_stats
    rbnorm.freeze(net, stats=False, affine=True)


@pytest.mark.parametrize("function", [rbnorm.freeze, rbnorm.unfreeze])
def test_model_without_rbn_is_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="model must have an RBN layer, got Linear"):
        function(nn.Linear(2, 2))


def names(net: nn.Module, group: dict[str, Any]) -> set[str]:
    of = {id(parameter): name for name, parameter in net.named_parameters()}
    return {of[id(parameter)] for parameter in group["params"]}


def test_groups() -> None:
    net = nn.Sequential(*model(), nn.GroupNorm(2, 4), rbnorm.RepresentativeBatchNorm2d(4))
    found = {group["name"]: group for group in rbnorm.parameter_groups(net, 0.1)}
    assert [(name, group["weight_decay"]) for name, group in found.items()] == [
        ("decay", 0.1),
        ("no_decay", 0.0),
        ("affine", 0.0),
        ("calibration", 0.0),
    ]
    assert names(net, found["decay"]) == {"0.weight"}
    assert names(net, found["no_decay"]) == {"0.bias", "3.weight", "3.bias"}
    assert names(net, found["affine"]) == {f"{i}.{n}" for i in (1, 4) for n in ("weight", "bias")}
    assert names(net, found["calibration"]) == {f"{i}.{n}" for i in (1, 4) for n in CALIBRATION}
    rbnorm.freeze(net, affine=True).append(net[1])  # trained parameters alone, and once
    assert [len(group["params"]) for group in rbnorm.parameter_groups(net)] == [1, 3, 6]


def test_groups_drive_an_optimizer() -> None:
    """Each with its own options: here only the calibration moves."""
    net = model()
    options = {"affine": {"lr": 0.0}, "calibration": {"lr": 0.2}}
    optimizer = torch.optim.SGD(rbnorm.parameter_groups(net, 0.1, **options), lr=0.0)
    before = copy.deepcopy(net.state_dict())
    net[:2](X).square().sum().backward()
    optimizer.step()
    for name, parameter in net.named_parameters():
        step = 0.2 if name.split(".")[1] in CALIBRATION else 0.0
        expected = before[name] - step * parameter.grad
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-14, atol=1e-14)
    assert not torch.equal(net[1].scale_bias, before["1.scale_bias"])


def test_the_calibration_is_trained_alone() -> None:
    """Everything else stays to the bit, weight decay and momentum notwithstanding."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    )
    net = rbnorm.freeze(rbnorm.convert_batchnorm(net).double(), affine=True, others=True).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(3, 2, 8, 8, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    moved = {
        name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved == {f"{layer}.{name}" for layer in (1, 3) for name in CALIBRATION}
    rbnorm.unfreeze(net, affine=True, others=True)
    assert all(parameter.requires_grad for parameter in net.parameters())
