"""Folding into the layer before: the numbers of the model, and which layers stay."""

import copy
import pickle

import pytest
import timm
import torch
from models import calibrate, converted, relative, shake, trained
from tolerances import assert_close
from torch import Tensor, nn

import rbnorm
from rbnorm.export import FoldedRepresentativeBatchNorm, fold

CASES = {
    1: (lambda **o: nn.Conv1d(4, 6, 3, **o), rbnorm.RepresentativeBatchNorm1d, (3, 4, 9)),
    2: (
        lambda **o: nn.Conv2d(4, 6, 3, groups=2, **o),
        rbnorm.RepresentativeBatchNorm2d,
        (3, 4, 7, 5),
    ),
    3: (lambda **o: nn.Conv3d(4, 6, 3, **o), rbnorm.RepresentativeBatchNorm3d, (3, 4, 3, 5, 4)),
    "linear": (lambda **o: nn.Linear(4, 6, **o), rbnorm.RepresentativeBatchNorm1d, (3, 4)),
    "point": (lambda **o: nn.Conv2d(4, 6, 1, **o), rbnorm.RepresentativeBatchNorm2d, (1, 4, 1, 1)),
    "empty": (lambda **o: nn.Conv2d(4, 6, 1, **o), rbnorm.RepresentativeBatchNorm2d, (0, 4, 3, 3)),
}


def pair(kind: object, bias: bool = True, **options: object) -> tuple[nn.Sequential, Tensor]:
    make, norm, shape = CASES[kind]
    torch.manual_seed(0)
    model = calibrate(shake(nn.Sequential(make(bias=bias), norm(6, **options))))
    return model.double(), torch.randn(shape, dtype=torch.float64) + 1


def assert_folds(model: nn.Module, x: Tensor, whole: bool = False) -> nn.Module:
    """Every layer folds, and other inputs than those of the trial give the model's outputs too."""
    report = fold(model, x)
    assert [layer.whole for layer in report.layers.values()] == [whole] * len(report.layers)
    assert all(layer.into is not None for layer in report.layers.values())
    other = torch.cat([2 * x - 1, x + 3])
    assert_close(report.model(other), model(other), x.dtype)
    return report.model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CASES)
@torch.no_grad()
def test_folded_pair_equals_the_layers(kind, bias: bool) -> None:
    assert_folds(*pair(kind, bias))


RESTRICTIONS = ("tanh", "hardsigmoid", "softsign", "identity", torch.sigmoid)


@pytest.mark.parametrize(
    "options",
    [
        *({"restrict": restrict} for restrict in RESTRICTIONS),
        *({part: False} for part in ("center", "scale", "affine")),
    ],
)
@torch.no_grad()
def test_every_option(options) -> None:
    model, x = pair(2, **options)
    folded = assert_folds(model, x)
    assert torch.equal(pickle.loads(pickle.dumps(folded))(x), folded(x))


@pytest.mark.parametrize("statistic", ["mean", "max"])
@torch.no_grad()
def test_untrained_calibration_folds_wholly(statistic: str) -> None:
    model, x = pair(2, statistic=statistic)
    for name in ("center_weight", "scale_weight"):
        nn.init.zeros_(getattr(model[1], name))
    folded = assert_folds(model, x, whole=True)
    assert torch.equal(folded(x), folded[0](x))


@torch.no_grad()
def test_channels_without_gain_and_with_undone_mean() -> None:
    """gamma = 0, a gamma next to it, a negative one, and w_m = -1 are all within the formulas."""
    model, x = pair(2)
    model[1].weight[:3] = torch.tensor([0, 1e-30, -0.7])
    model[1].center_weight[3:] = -1
    assert_folds(model, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_large_mean_in_every_dtype(dtype: torch.dtype) -> None:
    """The statistics are those of the layer's own inputs, of mean 30 and spread 1."""
    model, x = pair(2)
    model[0].bias.add_(30)
    model[1].eval().running_mean.copy_(30 * (1 + model[1].center_weight))
    model, x = model.to(dtype), x.to(dtype)
    report, expected = fold(model, x), copy.deepcopy(model).double()(x.double())
    folded = report.model(x)
    assert folded.dtype == dtype
    assert report.layers["1"].reason is None
    # The convolution's output is no longer rounded at the size of its mean.
    assert relative(folded.double(), expected) <= relative(model(x).double(), expected)


class Block(nn.Module):
    """timm's slot, with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = rbnorm.RepresentativeBatchNormAct2d(4, act_layer=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x), residual=x)


@pytest.mark.parametrize("whole", [True, False])
@torch.no_grad()
def test_activation_and_residual_follow(whole: bool) -> None:
    model = calibrate(shake(Block())).double()
    if whole:
        nn.init.zeros_(model.norm.center_weight)
        nn.init.zeros_(model.norm.scale_weight)
    assert_folds(model, torch.randn(3, 4, 5, 5, dtype=torch.float64), whole)


@pytest.mark.parametrize("tolerance", [None, 10])
@torch.no_grad()
def test_model_is_not_changed(tolerance) -> None:
    model, x = pair(2)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model, x, tolerance=tolerance).model
    assert model.training
    assert not folded.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    modules = [*model.modules(), *folded.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


class Odd(nn.Module):
    """Layers that must stay, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        options = {"max": {"statistic": "max"}, "batch": {"track_running_stats": False}}
        self.norms = nn.ModuleDict(
            {name: rbnorm.RepresentativeBatchNorm2d(4, **options.get(name, {})) for name in REASONS}
        )
        self.norms["residual"] = rbnorm.RepresentativeBatchNormAct2d(4)
        self.convs = nn.ModuleDict({name: nn.Conv2d(4, 4, 1) for name in self.norms})
        nn.utils.parametrizations.weight_norm(self.convs["normed"])
        self.norms["hooked"].register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        norm, conv = self.norms, self.convs
        y = norm["first"](x)
        u = conv["read"](x)
        y = y + norm["read"](u) * u
        u = conv["residual"](x)
        y = y + norm["residual"](u, residual=u)
        y = y + norm["viewed"](conv["viewed"](x).transpose(2, 3)).transpose(2, 3)
        y = y + norm["again"](conv["again"](x)) + conv["again"](y)
        y = norm["shared"](conv["shared"](norm["shared"](y)))
        for name in ("normed", "hooked", "max", "batch", "good"):
            y = y + norm[name](conv[name](x))
        return y


REASONS = {
    "first": "follows no convolution or linear layer",
    "read": "follows convs.read, whose output others use too",
    "residual": "follows convs.residual, whose output others use too",
    "viewed": "follows no convolution or linear layer",
    "again": "follows convs.again, whose output others use too",
    "normed": "follows convs.normed, whose weight is not its own parameter",
    "shared": "is called several times",
    "hooked": "has hooks",
    "max": "has the statistic 'max'",
    "batch": "has no running statistics",
    "unused": "was not reached by the inputs",
    "good": None,
}


@torch.no_grad()
def test_layers_that_cannot_fold_stay_with_a_reason() -> None:
    torch.manual_seed(0)
    model = calibrate(shake(Odd())).double()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    report = fold(model, x)
    assert {name: report.layers[f"norms.{name}"].reason for name in REASONS} == REASONS
    assert report.layers["norms.good"].into == "convs.good"
    kept = [m for m in report.model.modules() if isinstance(m, FoldedRepresentativeBatchNorm)]
    assert len(kept) == 1
    assert_close(report.model(x), model(x), torch.float64)


class Standardised(nn.Conv2d):
    """A convolution whose output does not follow its weight's scale."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


class Secret(nn.Module):
    """Reads a convolution's weight behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), rbnorm.RepresentativeBatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv.weight.sum()


@torch.no_grad()
def test_what_one_run_does_not_show_is_found_by_the_numbers() -> None:
    torch.manual_seed(0)
    norm, x = rbnorm.RepresentativeBatchNorm2d(4), torch.randn(2, 4, 5, 5)
    model = calibrate(shake(nn.Sequential(Standardised(4, 4, 1), norm)))
    report = fold(model, x)
    assert report.layers["1"].reason == "follows 0, and differs after folding"
    assert report.layers["1"].error > 0.01
    assert torch.equal(report.model(x), model(x))
    with pytest.raises(ValueError, match=r"outputs must agree after folding to 0\.001 of"):
        fold(calibrate(shake(Secret())), x)
    with pytest.raises(ValueError, match="model must have an RBN layer, got Conv2d"):
        fold(nn.Conv2d(4, 4, 1), x)


MODELS = {
    "resnet18": lambda: converted("resnet18"),
    "mobilenet_v3_small": lambda: converted("mobilenet_v3_small"),
    "densenet121": lambda: converted("densenet121"),
    "tf_efficientnet_b0": lambda: trained(timm.create_model("tf_efficientnet_b0")),
    "regnety_002": lambda: trained(timm.create_model("regnety_002")),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_layer_after_a_convolution_folds(name: str) -> None:
    """All, but where DenseNet normalises what it concatenates."""
    torch.manual_seed(0)
    model = MODELS[name]()
    report = fold(model, torch.randn(2, 3, 64, 64))
    assert report.error < 1e-5
    folded = [layer for layer, found in report.layers.items() if found.into]
    dense = 1 + sum(layer.endswith("norm2") for layer in report.layers)
    assert len(folded) == (dense if name == "densenet121" else len(report.layers))
    other = torch.randn(3, 3, 48, 80)
    assert relative(report.model(other), model(other)) < 1e-5
