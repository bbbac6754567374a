"""The sentences name the layer, the case and the size that were planted, and what to try."""

import pytest
import torch
from torch import nn

import rbnorm
from rbnorm_lab.findings import findings


def said(model: nn.Module, x: torch.Tensor, **options) -> str:
    images = (len(x), len(x) + 1)
    return "\n".join(text.en for text in findings(rbnorm.diagnose(model, [x], **options), images))


@pytest.fixture
def model() -> nn.Sequential:
    """Two layers whose running statistics are those of the data."""
    return nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(32, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_nothing_is_wrong_with_the_data_of_the_running_statistics(model, x) -> None:
    text = said(rbnorm.recalibrate(model, [x]), x)
    assert "Measured on 32 images: 2 BatchNorm2d." in text
    for case in ("deviations below the running mean", "than 2 times the running one"):
        assert f" {case}." in text
    assert "Of the pairs of image and channel, 0.0 % have a mean more than" in text
    assert "recalibrate" not in text
    assert "lies between images, on which centring acts: 1." in text


@pytest.mark.parametrize(
    ("offset", "case"), [(1.0, "below the running mean"), (-1.0, "above the running mean")]
)
def test_a_wrong_running_mean_is_named_with_its_size(model, x, offset, case) -> None:
    rbnorm.recalibrate(model, [x])[1].running_mean[0] += offset
    text = said(model, x)
    limit = f"have a mean more than 0.5 running standard deviations {case} (the paper: "
    assert f"Of the pairs of image and channel, 12.5 % {limit}" in text
    assert "); most in 1, 25.0 %." in text
    # a quarter of the channels is one deviation off: just what is reported
    model[1].running_mean[0] += offset
    assert "Try rbnorm.recalibrate: in 1 layer the channels' means" in said(model, x)


def test_images_that_differ_are_what_centring_acts_on(model, x) -> None:
    x = x + 2 * torch.randn(32, 4, 1, 1, generator=torch.Generator().manual_seed(1))
    text = said(rbnorm.recalibrate(model, [x]), x)
    assert "lies between images, on which centring acts: 78.2 %." in text


def test_what_is_broken_is_said(model, x) -> None:
    x[3, 2] = torch.nan
    text = said(nn.ModuleList(model), x, forward=lambda layers, batch: layers[1](batch))
    assert "No image reached 0." in text
    assert "1 layer got activations that are not finite, first 1;" in text


@pytest.mark.parametrize(
    ("shifted", "sentence"),
    [
        (lambda x: x - 1, "1.00 standard deviations darker than the first's"),
        (lambda x: 0.5 * x, "their contrast is 0.50 times theirs: set their contrast"),
        (lambda x: x + 0.01, "0.01 standard deviations brighter than the first's, and their con"),
        (lambda x: x + 0.001, "as bright as the first's, and their contrast is the same: neither"),
    ],
)
def test_the_images_themselves_come_first(model, x, shifted, sentence: str) -> None:
    text = said(rbnorm.recalibrate(model, [x]), x, shifted=[shifted(x)])
    assert sentence in text.splitlines()[1]


def test_what_rbn_learnt_is_said(x) -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(4)
    layer.center_weight.data = torch.tensor([-1.0, 0.0, 0.5, -0.5])
    text = said(layer, x, shifted=[x + 1])
    assert (
        "25.0 % remove the instance mean, 25.0 % damp it, 25.0 % are BatchNorm, 25.0 % amplify it, "
        "0.0 % reverse it" in text
    )
    assert "gamma: 100.0 % on the first data and 100.0 % on the second." in text
    assert "; after centring: " in text


def test_every_number_names_its_data(model, x) -> None:
    text = said(rbnorm.recalibrate(model, [x]), x, shifted=[x - 3])
    assert "Measured on 32 images of the first data and 33 of the second: 2 BatchNorm2d." in text
    assert "0.0 % on the first data and 100.0 % on the second have a mean more than" in text
    assert "(the paper: representative features are removed); most of the second data in 0" in text
