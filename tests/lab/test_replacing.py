import pytest
import timm
import timm.layers
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from rbnorm_lab.errors import UsageError
from rbnorm_lab.models import build_model
from rbnorm_lab.replacing import replace_with_activation


class BatchNormReLU(nn.BatchNorm2d):
    """What a BatchNorm and the ReLU after it compute together."""

    def __init__(self, layer, activated):
        super().__init__(layer.num_features, layer.eps)
        self.activated = activated

    def forward(self, input):
        y = super().forward(input)
        return y.relu() if self.activated else y


def activated(model):
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNormReLU)]
    return sum(layer.activated for layer in layers), len(layers)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cifar-resnet14", (7, 15)),
        ("small:torchvision:resnet18", (9, 20)),
        ("small:timm:resnet10t", (7, 14)),
        ("small:timm:regnetx_002", (27, 44)),
    ],
)
def test_an_activation_goes_where_its_norm_takes_it_over(name, counts):
    model = build_model(name, "bn", classes=10, channels=3, seed=0)
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = model(x)
        fused = replace_with_activation(model, BatchNormReLU)
        torch.testing.assert_close(fused(x), expected)
    assert activated(fused) == counts


class Written(nn.Module):
    """Activations in every way they are written."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(6))
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Identity()

    def forward(self, x):
        x = self.act(self.norms[0](x))
        x = F.relu(self.norms[1](x), inplace=True)
        x = torch.relu_(self.norms[2](x))
        x = self.drop(self.norms[3](x)).relu()
        y = self.norms[4](x)  # read twice, so the activation stays
        return self.act(self.norms[5](y.relu() + y) + x)


def test_modules_functions_and_methods_are_activations():
    model = Written()
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    fused = replace_with_activation(model, BatchNormReLU)
    assert [layer.activated for layer in fused.norms.children()] == [True] * 4 + [False] * 2
    torch.testing.assert_close(fused(x), expected)


def test_a_shared_layer_stays_shared():
    norm = nn.BatchNorm2d(3)
    fused = replace_with_activation(nn.Sequential(norm, nn.ReLU(), norm, nn.SiLU()), BatchNormReLU)
    layers = [module for module in fused.modules() if isinstance(module, BatchNormReLU)]
    assert [layer.activated for layer in layers] == [True]
    assert layers[0].weight is norm.weight


def test_names_and_weights_stay():
    model = build_model("cifar-resnet8", "bn", classes=10, channels=1, seed=0)
    before = model.state_dict(keep_vars=True)
    after = replace_with_activation(model, BatchNormReLU).state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name, _ in model.named_parameters())


def test_the_dropout_of_timms_layer_stays():
    layer = timm.layers.BatchNormAct2d(3, drop_layer=nn.Dropout2d)
    fused = replace_with_activation(nn.Sequential(layer), BatchNormReLU)
    assert [type(part) for part in getattr(fused, "0")] == [BatchNormReLU, nn.Dropout2d]


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching, "torch.fx cannot trace .*control flow"),
        (lambda: nn.Sequential(nn.BatchNorm1d(4)), "replaces BatchNorm2d"),
        (
            lambda: torchvision.models.googlenet(num_classes=10, init_weights=False),
            "computes otherwise in training",
        ),
        (lambda: timm.create_model("ghostnet_050"), "computes otherwise in training"),
    ],
)
def test_a_model_that_cannot_be_rewritten_is_refused(model, message):
    with pytest.raises(UsageError, match=message):
        replace_with_activation(model(), BatchNormReLU)


def test_a_layer_with_an_activation_and_without_is_refused():
    norm = nn.BatchNorm2d(3)
    with pytest.raises(UsageError, match="layer 0 is used with an activation and without"):
        replace_with_activation(nn.Sequential(norm, nn.ReLU(), norm), BatchNormReLU)
