"""RBN back to BatchNorm on whole models, and the error that is reported."""

import copy
import sys

import pytest
import timm
import torch
import torchvision
from models import norms, shake, small, trained
from torch import nn

import rbnorm


def test_untrained_calibration_reverts_exactly() -> None:
    model = shake(torchvision.models.resnet18()).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model(x)
    state = copy.deepcopy(model.state_dict())
    report = rbnorm.revert_batchnorm(rbnorm.convert_batchnorm(model))
    assert report.model is model
    assert report.output == 0
    assert set(report.layers.values()) == {0.0}
    assert {type(m) for m in norms(model)} == {nn.BatchNorm2d}
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-12)
    assert list(model.state_dict()) == list(state)


def test_reported_error_is_the_measured_one() -> None:
    model = trained(torchvision.models.resnet18())
    model.double().train()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    twin = copy.deepcopy(model).eval()
    first_input = twin.conv1(x)
    expected, expected_first = twin(x), twin.bn1(first_input)
    report = rbnorm.revert_batchnorm(model, x)
    assert model.training
    model.eval()
    error = (model(x) - expected).norm() / expected.norm()
    assert report.output == pytest.approx(error.item(), rel=1e-9)
    assert 0 < report.output < 1
    first = (model.bn1(first_input) - expected_first).norm() / expected_first.norm()
    assert report.layers["bn1"] == pytest.approx(first.item(), rel=1e-9)
    assert len(report.layers) == 20
    assert all(p.requires_grad for p in model.parameters())


def test_revert_is_exact_for_instances_with_the_batch_mean() -> None:
    """The static part that is kept: gamma R(w_b), and the running mean of x instead of z."""
    layer = rbnorm.RepresentativeBatchNorm2d(2, dtype=torch.float64).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer.running_mean.copy_(torch.tensor([0.5, -2.0]))
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    target = (layer.running_mean / (1 + layer.center_weight)).view(1, 2, 1, 1)
    x = x - x.mean((2, 3), keepdim=True) + target
    expected = layer(x)
    report = rbnorm.revert_batchnorm(layer, x)
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)
    assert report.output < 1e-12


def test_dropping_unmeasured_calibration_warns() -> None:
    model = trained(small())
    with pytest.warns(UserWarning, match="of 1 layers without measuring the error; pass inputs="):
        report = rbnorm.revert_batchnorm(model)
    assert report.output is None
    assert report.layers == {"1": None}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_each_kind_of_layer_comes_back(affine: bool, track: bool) -> None:
    original = shake(nn.BatchNorm1d(3, affine=affine, track_running_stats=track)).double().eval()
    layer = rbnorm.convert_batchnorm(copy.deepcopy(original))
    rbnorm.revert_batchnorm(layer)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    assert type(layer) is nn.BatchNorm1d
    assert torch.allclose(layer(x), original(x), rtol=0, atol=1e-13)
    assert list(layer.state_dict()) == list(original.state_dict())
    assert repr(layer) == repr(original)


def test_gate_of_a_layer_without_gamma_becomes_a_frozen_weight() -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(3, affine=False)
    x = torch.randn(4, 3, 5, 5)
    expected = layer.eval()(x)
    rbnorm.revert_batchnorm(layer)
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (timm.layers.BatchNormAct2d, timm.layers.SyncBatchNormAct),
        (nn.BatchNorm2d, nn.SyncBatchNorm),
    ],
)
def test_synchronised_layer_comes_back_synchronised(make, kind) -> None:
    """With its process group; otherwise as what it was."""
    layer = shake(make(4)).eval()
    x = torch.randn(2, 4, 3, 3)
    expected = layer(x)
    rbnorm.revert_batchnorm(rbnorm.convert_batchnorm(layer))
    assert type(layer) is make
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-6)
    rbnorm.convert_sync(rbnorm.convert_batchnorm(layer), "a group")
    rbnorm.revert_batchnorm(layer)
    assert type(layer) is kind
    assert layer.process_group == "a group"
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-6)


def test_norm_act_layer_needs_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = rbnorm.RepresentativeBatchNormAct2d(2)
    monkeypatch.setitem(sys.modules, "timm.layers", None)
    with pytest.raises(ValueError, match="needs timm's BatchNormAct2d to be reverted to"):
        rbnorm.revert_batchnorm(layer)
    assert type(layer) is rbnorm.RepresentativeBatchNormAct2d


def test_frozen_statistics_are_not_lost_without_a_word() -> None:
    model = rbnorm.freeze(rbnorm.convert_batchnorm(nn.Sequential(nn.BatchNorm1d(2))))
    with pytest.warns(UserWarning, match="statistics of 1 layers were frozen, the first '0'"):
        rbnorm.revert_batchnorm(model)
    assert "frozen_stats" not in vars(model[0])


@pytest.mark.parametrize("case", ["no gates", "equal gates", "different gates", "a BatchNorm's"])
def test_layers_that_shared_a_divided_weight_get_one_each(case: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).double().eval()
    weight = model[1].weight = model[0].weight
    nn.init.uniform_(weight)
    if case == "a BatchNorm's":
        rbnorm.convert_batchnorm(model, preserve=False, where="0")
        weight.requires_grad_(False)
    else:
        rbnorm.convert_batchnorm(model, scale=case != "no gates")
        if case == "different gates":
            model[1].scale_bias.data.fill_(3)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    expected = model(x)
    assert rbnorm.revert_batchnorm(model, x).output < 1e-12
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-12)
    assert (model[0].weight is model[1].weight) == (case == "no gates")
    assert model[0].weight.requires_grad == (case != "a BatchNorm's")
    assert model[1].weight is weight or case in ("equal gates", "different gates")


@pytest.mark.parametrize("shape", [(2, 2, 5), (2, 3, 5, 5)])
def test_failing_run_leaves_the_model_alone(shape: tuple[int, ...]) -> None:
    """A layer of another rank than BatchNorm's, or of other channels."""
    model = nn.Sequential(nn.SyncBatchNorm(2)).train()
    rbnorm.revert_sync(rbnorm.convert_batchnorm(model))
    with pytest.raises(RuntimeError, match="the model failed on batch 1"):
        rbnorm.revert_batchnorm(model, torch.randn(shape))
    assert type(model[0]) is rbnorm.SyncRepresentativeBatchNorm
    assert model[0].training
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize(
    ("center", "statistic", "kept"),
    [(-1.0, "mean", True), (1.0, "max", True), (1.0, "mean", False)],
)
def test_running_mean_is_kept_where_that_of_x_is_unknown(
    center: float, statistic: str, kept: bool
) -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(1, statistic=statistic, center_weight_init=center)
    layer.eval().running_mean.fill_(3)
    rbnorm.revert_batchnorm(layer, torch.randn(2, 1, 4, 4))
    assert layer.running_mean.item() == (3.0 if kept else 1.5)


class Odd(nn.Module):
    """Calls one norm by keyword, writes to its input, and never reaches the other norm."""

    def __init__(self) -> None:
        super().__init__()
        self.used = rbnorm.RepresentativeBatchNorm2d(2, center_weight_init=0.5)
        self.unused = rbnorm.RepresentativeBatchNorm2d(2, center_weight_init=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(input=x.mul_(2))


def test_odd_model_is_measured_on_equal_inputs() -> None:
    """And the printed report has the errors, and not the model."""
    torch.manual_seed(0)
    model, x = Odd(), torch.randn(2, 2, 4, 4)
    before = x.clone()
    report = rbnorm.revert_batchnorm(model, x)
    assert torch.equal(x, before)
    assert report.layers["unused"] is None
    assert report.layers["used"] == pytest.approx(report.output)
    assert 0 < report.output < 1
    first, header, *rows = str(report).splitlines()
    said = "2 layers are BatchNorm again; the error of the model's output is"
    assert first == f"{said} {report.output:.2%}"
    assert header.split() == ["layer", "error"]
    assert [row.split() for row in rows] == [["used", f"{report.output:.2%}"], ["unused", "-"]]
    assert repr(report) == str(report)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.BatchNorm2d(3), "model must have an RBN layer, got Sequential"),
        (rbnorm.LazyRepresentativeBatchNorm2d, "has no size yet"),
        (lambda: rbnorm.RepresentativeBatchNorm2d(3, device="meta"), "is on the meta device"),
    ],
)
def test_layer_without_values_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rbnorm.revert_batchnorm(nn.Sequential(make()))
