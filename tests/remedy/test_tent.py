"""TENT by the letter: statistics of the batch, a prediction, then a step on its entropy."""

import copy

import pytest
import torch
from torch import nn

import rbnorm
from rbnorm.remedy.tent import Tent


def literal(model: nn.Module, batches, names) -> list[torch.Tensor]:
    model = copy.deepcopy(model).eval().requires_grad_(False)
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    adapted = [getattr(layer, name).requires_grad_() for layer in layers for name in names]
    for layer in layers:
        layer.train()
    optimizer = torch.optim.Adam(adapted, 1e-3)
    found = []
    for x, _ in batches:
        scores = model(x)
        p = scores.softmax(1)
        optimizer.zero_grad()
        (-(p * p.log()).sum(1).mean()).backward()
        optimizer.step()
        found.append(scores.detach())
    return found


@pytest.mark.parametrize("calibration", [False, True])
@pytest.mark.parametrize("convert", [False, True])
def test_it_is_tent(model, second, convert: bool, calibration: bool) -> None:
    model = rbnorm.convert_batchnorm(model) if convert else model
    names = ["weight", "bias"]
    if convert and calibration:
        names += ["center_weight", "scale_weight", "scale_bias"]
    model, data = model.double(), [(x.double(), y) for x, y in second]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapting = Tent(model, calibration=calibration)
    found = [adapting(adapting.model, batch) for batch in data]
    torch.testing.assert_close(found, literal(model, data, names), rtol=1e-9, atol=1e-9)
    assert not any(scores.requires_grad for scores in found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    kept = adapting.model[1]
    assert torch.equal(kept.running_mean, model[1].running_mean)


@pytest.mark.parametrize(
    ("make", "shape"), [(nn.BatchNorm1d, (6, 4)), (nn.BatchNorm3d, (6, 4, 2, 2, 2))]
)
def test_it_adapts_in_all_dimensions(make, shape) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(make(shape[1]), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(shape)
    model(x)
    adapting = Tent(model)
    first, second = (adapting(adapting.model, x) for _ in range(2))
    assert not torch.equal(first, second)
