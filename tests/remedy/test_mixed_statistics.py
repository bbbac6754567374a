"""Statistics mixed from running and batch ones, other batches of the same data, and intervals."""

import numpy as np
import pytest
import torch
from models import calibrate, shake
from scipy.stats import bootstrap
from torch import nn

import rbnorm
from rbnorm.diagnosis.scores import interval
from rbnorm.remedy.statistics import Rebatched, mixed_statistics


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("make", [nn.BatchNorm2d, rbnorm.RepresentativeBatchNorm2d])
@pytest.mark.parametrize("shape", [(5, 3, 4, 2), (4, 3, 1, 1), (1, 3, 2, 2)])
def test_mean_and_variance_are_mixed(make, shape, weight: float) -> None:
    torch.manual_seed(0)
    layer = shake(make(3).double()).eval()
    calibrate(layer)
    x = torch.randn(shape, dtype=torch.float64) * 2 + 5
    w_m = getattr(layer, "center_weight", torch.zeros(3, dtype=torch.float64)).detach()
    z = x + w_m.view(3, 1, 1) * x.mean((2, 3), keepdim=True)
    running = layer.running_mean.clone(), layer.running_var.clone()
    batch = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    with torch.no_grad(), mixed_statistics(layer, weight):
        found = layer(x)
    assert torch.equal(layer.running_mean, running[0])
    layer.running_mean, layer.running_var = (
        (1 - weight) * kept + weight * new for kept, new in zip(running, batch, strict=True)
    )
    torch.testing.assert_close(found, layer(x).detach(), rtol=1e-12, atol=1e-12)


def test_an_empty_batch_changes_nothing() -> None:
    layer = nn.BatchNorm2d(2).eval()
    with mixed_statistics(layer, 1.0):
        assert layer(torch.empty(0, 2, 3, 3)).shape == (0, 2, 3, 3)
    assert torch.equal(layer.running_var, torch.ones(2))


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(7, 3, [3, 4]), (8, 3, [3, 3, 2]), (6, 3, [3, 3]), (2, 3, [2]), (3, 1, [1, 1, 1]), (0, 2, [])],
)
def test_instances_are_cut_anew_in_their_order(count: int, size: int, expected) -> None:
    x = torch.arange(count)
    parts = list(Rebatched([(a, 2 * a) for a in x.split(2)], size))
    assert [len(part) for part, _ in parts] == expected
    assert all(torch.equal(2 * a, b) for a, b in parts)
    assert torch.equal(torch.cat([a for a, _ in parts]) if parts else x, x)


def test_mappings_and_single_tensors_are_cut_too() -> None:
    x = torch.arange(6)
    mappings = list(Rebatched([{"x": a, "y": -a} for a in x.split(4)], 3))
    assert all(torch.equal(found["y"], -found["x"]) for found in mappings)
    assert [found["x"].tolist() for found in mappings] == [[0, 1, 2], [3, 4, 5]]
    assert [found.tolist() for found in Rebatched(x.split(4), 3)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("batch", [(torch.ones(2), torch.ones(3)), [torch.ones(2), "ab"], {}])
def test_what_has_no_rows_is_not_cut(batch) -> None:
    with pytest.raises(ValueError, match="tensors with a row for each instance"):
        list(Rebatched([batch], 2))


def test_the_interval_is_that_of_a_percentile_bootstrap() -> None:
    values = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = interval(torch.cat([values, torch.tensor([torch.nan])]))
    theirs = bootstrap(
        (values.numpy(),), np.mean, n_resamples=20000, method="percentile", rng=0
    ).confidence_interval
    assert found.value == pytest.approx(values.mean().item(), abs=1e-12)
    assert found.low == pytest.approx(theirs.low, abs=0.01)
    assert found.high == pytest.approx(theirs.high, abs=0.01)


def test_the_interval_of_nothing_is_not_a_number() -> None:
    assert all(np.isnan(interval(torch.full((3,), torch.nan, dtype=torch.float64))))


def test_a_layer_that_is_called_by_keyword_mixes() -> None:
    layer = nn.BatchNorm1d(2).eval()
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    with torch.no_grad(), mixed_statistics(layer, 1.0):
        assert torch.equal(layer(input=x), layer(x))
        assert layer(input=x).mean(0).abs().max() < 1e-6
