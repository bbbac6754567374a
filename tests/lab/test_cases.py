"""The image and channel where each of the four cases is strongest."""

import pytest
import torch
from torch import nn

import rbnorm
from rbnorm_lab.cases import CASES, extremes


@pytest.fixture
def images() -> torch.Tensor:
    x = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    x[1, 0] -= 9
    x[4, 1] += 9
    x[2, 1] *= 0.01
    x[5, 0] *= 20
    return x


@pytest.mark.parametrize("size", [6, 4, 1])
def test_planted_images_are_found_whatever_the_batches(images, size) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2)).eval()
    batches = list(images.split(size))
    found = extremes(model, rbnorm.diagnose(model, batches), batches)
    assert [(e.case, e.image, e.channel) for e in found] == list(
        zip(CASES, (1, 4, 2, 5), (0, 1, 1, 0), strict=True)
    )
    assert found[0].offset == pytest.approx(images[1, 0].mean().item(), rel=1e-4)
    assert torch.equal(found[1].photograph, images[4:5])


def test_after_batchnorm_stands_the_channel_by_its_own_statistics(images) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2)).eval()
    found = extremes(model, rbnorm.diagnose(model, [images]), [images])[3]
    x = images[5, 0].double()
    torch.testing.assert_close(found.before, x / (1 + 1e-5) ** 0.5)
    own = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(found.after, own, rtol=1e-6, atol=1e-6)
    assert not found.calibrated


def test_after_rbn_stands_what_its_calibration_makes(images) -> None:
    layer = rbnorm.RepresentativeBatchNorm2d(2, scale_weight_init=0.5).eval()
    layer.center_weight.data = torch.tensor([0.5, -0.5])
    found = extremes(layer, rbnorm.diagnose(layer, [images]), [images])[0]
    expected = layer(images)[found.image, found.channel].detach().double()  # gamma 1, beta 0
    torch.testing.assert_close(found.after, expected, rtol=1e-5, atol=1e-5)
    assert found.calibrated


@pytest.mark.parametrize(("side", "scale"), [(2, 9), (16, 1)])
def test_maps_too_small_and_images_in_no_case_have_no_picture(side: int, scale: float) -> None:
    model = nn.BatchNorm2d(2).eval()
    x = scale * torch.randn(3, 2, side, side, generator=torch.Generator().manual_seed(0))
    assert extremes(model, rbnorm.diagnose(model, [x]), [x]) == []
