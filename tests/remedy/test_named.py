"""Which layers a second data set moves by themselves."""

import math

import pytest
import torch
from torch import nn

import rbnorm
from rbnorm.remedy.named import named_layers, own_shifts


def test_a_planted_shift_is_found_where_it_enters_alone(model, first, second) -> None:
    shifts = own_shifts(model, first, second)
    diagnosed = rbnorm.diagnose(model, first, shifted=second)
    assert shifts["1"] > 0.5
    assert shifts["4"] == pytest.approx(0, abs=1e-4)
    assert diagnosed["4"]["shift"] > 0.5  # which moved because the layer before it had
    assert named_layers(shifts) == ("1",)


def test_the_distance_is_in_standard_deviations() -> None:
    layer = nn.BatchNorm1d(2, eps=1e-5).double()
    x = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    wide = 3 * x + torch.tensor([4.0, 0.0], dtype=torch.float64)
    found = own_shifts(layer, [x], [wide])
    scale = 2 + 1e-5
    spread = math.sqrt((18 + 1e-5) / scale) - 1
    expected = math.sqrt((16 / scale + spread**2 + spread**2) / 2)
    assert found[""] == pytest.approx(expected, rel=1e-12)


def test_the_model_keeps_its_statistics(model, first, second) -> None:
    before = model[1].running_mean.clone()
    own_shifts(model, first, second)
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        ({"a": 1.0, "b": 0.5, "c": 0.49}, ("a", "b")),
        ({"a": 0.0, "b": 0.0}, ()),
        ({"a": math.nan, "b": 2.0}, ("b",)),
        ({}, ()),
    ],
)
def test_layers_at_least_half_as_far_as_the_furthest_are_named(shifts, expected) -> None:
    assert named_layers(shifts) == expected
