"""Folding with a tolerance: what becomes constant, and what that does to the outputs."""

import math

import pytest
import torch
from models import calibrate, shake
from tolerances import assert_close
from torch import Tensor, nn

import rbnorm
from rbnorm.export import FoldReport, fold

NORMS = ("1", "4", "7")


@pytest.fixture
def net() -> nn.Sequential:
    """Three layers with random calibrations."""
    torch.manual_seed(0)
    layers = [
        layer
        for C in (3, 6, 6)
        for layer in (
            nn.Conv2d(C, 6, 3, padding=1),
            rbnorm.RepresentativeBatchNorm2d(6),
            nn.ReLU(),
        )
    ]
    return calibrate(shake(nn.Sequential(*layers[:-1]))).double()


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(8, 3, 6, 5, dtype=torch.float64) + torch.randn(8, 3, 1, 1)


def make_inert(net: nn.Sequential, *names: str) -> None:
    for name in names:
        for vector in ("center_weight", "scale_weight"):
            getattr(net.get_submodule(name), vector).data.mul_(1e-5)


def constants(report: FoldReport) -> list[bool]:
    return [layer.constant for layer in report.layers.values()]


def change(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / (expected - expected.mean(0)).abs().max())


@torch.no_grad()
def test_inert_calibrations_become_constant_and_others_stay(net, images) -> None:
    make_inert(net, "1", "7")
    report = fold(net, images, tolerance=1e-3)
    assert constants(report) == [True, False, True]
    assert [layer.whole for layer in report.layers.values()] == [True, False, True]
    assert all(layer.effect is not None for layer in report.layers.values())
    assert report.layers["4"].effect > 1e-3
    assert report.effect == pytest.approx(change(report.model(images), net(images)), rel=1e-9)
    assert 0 < report.effect <= 1e-3


@torch.no_grad()
def test_a_larger_tolerance_makes_more_constant_and_none_is_exceeded(net, images) -> None:
    found = []
    for tolerance in (1e-9, 0.03, 0.1, 0.3, 1, 10):
        report = fold(net, images, tolerance=tolerance)
        assert change(report.model(images), net(images)) <= tolerance
        found.append(sum(layer.whole for layer in report.layers.values()))
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, 3)


@torch.no_grad()
def test_constant_is_the_nearest_affine_map(net, images) -> None:
    net[0].weight[2] = 0  # whose channel, which never varies, is met exactly
    net = net[:2]
    u, y = net[0](images), net(images)
    made = fold(net, images, tolerance=10).model(images)
    assert_close(made[:, 2], y[:, 2], torch.float64)
    for c in (0, 1, 3, 4, 5):
        design = torch.stack([u[:, c].flatten(), torch.ones(u[:, c].numel())], 1)
        target = y[:, c].reshape(-1, 1)
        nearest = design @ torch.linalg.lstsq(design, target).solution
        assert_close(made[:, c].reshape(-1, 1), nearest, torch.float64)


@pytest.mark.parametrize(
    "options",
    [{"statistic": "max"}, {"restrict": torch.tanh}, {"center": False}, {"affine": False}],
    ids=["statistic", "callable", "no centring", "no affine"],
)
@torch.no_grad()
def test_every_option_can_become_constant(options, images) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), rbnorm.RepresentativeBatchNorm2d(6, **options))
    net = calibrate(shake(net)).double()
    for name in ("center_weight", "scale_weight"):
        if getattr(net[1], name) is not None:
            getattr(net[1], name).mul_(1e-5)
    report = fold(net, images, tolerance=1e-3)
    assert report.layers["1"].into == "0"
    assert report.layers["1"].reason is None
    assert constants(report) == [True]
    assert change(report.model(images), net(images)) <= 1e-3


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 7), (1, 3, 6), (4, 3, 1)], ids=str)
@torch.no_grad()
def test_other_ranks_and_single_instances(shape) -> None:
    torch.manual_seed(0)
    first = nn.Linear(3, 5) if len(shape) == 2 else nn.Conv1d(3, 5, 1)
    net = nn.Sequential(first, rbnorm.RepresentativeBatchNorm1d(5))
    net = calibrate(shake(net)).double()
    x = torch.randn(shape, dtype=torch.float64)
    # Nothing is too much; one position per channel is what the mean is of.
    report = fold(net, x, tolerance=100)
    assert constants(report) == [True]
    assert report.model(x).isfinite().all()
    if shape[0] == 1:  # a single instance is met exactly
        assert_close(report.model(x), net(x), torch.float64)


@torch.no_grad()
def test_batches_in_a_list_are_one_set_of_images(net, images) -> None:
    make_inert(net, "1", "7")
    whole = fold(net, images, tolerance=1e-3)
    parts = fold(net, [images[:3], images[3:]], tolerance=1e-3)
    assert constants(parts) == constants(whole)
    assert parts.effect == pytest.approx(whole.effect, rel=1e-6)
    assert_close(parts.model(images), whole.model(images), torch.float64)
    of_two_sizes = fold(net, [images, images[:, :, :4, :4]], tolerance=1e-3)
    assert constants(of_two_sizes) == constants(whole)
    none = fold(net, torch.empty(0, 3, 6, 5, dtype=torch.float64), tolerance=0.1)
    assert constants(none) == [False] * 3


@torch.no_grad()
def test_summary_counts(net, images) -> None:
    make_inert(net, "1")
    report = fold(net, images, tolerance=1e-3)
    assert report.summary() == (
        "1 of 3 RBN layers are folded wholly, 1 of them with a constant calibration; 2 are folded "
        "but for what depends on the instance; 0 stay as they were; the outputs change by "
        f"{report.effect:.2%}"
    )
    lines = [line.split() for line in str(report).splitlines()]
    rows = lines[lines.index(["layer", "left", "constant", "effect"]) + 1 :]
    assert [row[:2] for row in rows] == [
        ["1", "nothing"], ["4", "calibration"], ["7", "calibration"]
    ]  # fmt: skip
    assert max(map(len, str(report).splitlines())) <= 80


@pytest.mark.parametrize("tolerance", [0, -0.1, math.inf, math.nan])
def test_tolerance_that_is_none_is_refused(net, images, tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be a positive number or None, got"):
        fold(net, images, tolerance=tolerance)
    with pytest.raises(ValueError, match="must have at least one batch, got an empty list"):
        fold(net, [])
