"""Images of equal mean and contrast, before the network and nowhere else."""

from dataclasses import replace

import pytest
import torch
from support import CONFIG
from torch import nn

from rbnorm_lab.data import ImageData, Tensors, load_data
from rbnorm_lab.image_moments import Moments, average_moments, match_moments, matched
from rbnorm_lab.shift import shifted_accuracy
from rbnorm_lab.train import model_of

TARGET = Moments(torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64))
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)


def raw(count=6, channels=3):
    return torch.rand((count, channels, 8, 8), generator=torch.Generator().manual_seed(0))


def standardised(images):
    mean, std = (torch.tensor(moment).view(-1, 1, 1) for moment in (MEAN, STD))
    return (images - mean) / std


def data_of(images):
    labels = torch.arange(len(images)) % 2
    dataset = Tensors(images, labels, standardised)
    return ImageData(dataset, dataset, dataset, 2, 3, MEAN, STD)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_gets_the_targets_mean_and_contrast(channels):
    images = raw(channels=channels)
    found = matched(images, TARGET).double()
    assert found.dtype == torch.float64
    assert matched(images, TARGET).dtype == torch.float32
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.full((6,), 0.5).double())
    torch.testing.assert_close(found.std((1, 2, 3), correction=0), torch.full((6,), 0.2).double())
    x = images.double()
    m, s = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(found, (x - m) * 0.2 / s + 0.5, rtol=1e-5, atol=1e-6)


def test_an_image_does_not_depend_on_the_others():
    images = raw()
    torch.testing.assert_close(matched(images, TARGET)[2:3], matched(images[2:3], TARGET))
    assert matched(images[:0], TARGET).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_of_a_constant_image_only_the_mean_is_set(value):
    """Standardised by channel and back, its values differ by rounding, which is no contrast."""
    model = nn.Identity()
    match_moments(model, data_of(raw()))
    target = average_moments(data_of(raw())).mean.float()
    expected = standardised(torch.full((1, 3, 8, 8), 1.0) * target)
    found = model(standardised(torch.full((1, 3, 8, 8), value)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_one_step_of_one_value_is_contrast():
    image = torch.full((1, 3, 224, 224), 0.5)
    image[0, 0, 0, 0] += 1 / 255
    contrast = matched(image, TARGET).double().std((1, 2, 3), correction=0)
    torch.testing.assert_close(contrast, torch.tensor([0.2]).double(), rtol=1e-2, atol=0)


def test_the_target_is_the_average_over_training_images():
    images = raw(7)
    found = average_moments(data_of(images))
    x = images.double().flatten(1)
    torch.testing.assert_close(found.mean, x.mean(1).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.std, x.std(1, correction=0).mean(), rtol=1e-5, atol=0)


def test_the_network_sees_them_once_in_training_and_in_evaluation():
    data = data_of(raw())
    seen = []
    model = nn.BatchNorm2d(3)
    match_moments(model, data)
    model.forward = lambda images: seen.append(images) or images
    for module in (model.train(), model.eval()):
        module(standardised(raw()))
    expected = standardised(matched(raw(), average_moments(data)))
    assert len(seen) == 2
    for images in seen:
        torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


def test_a_run_asks_for_them_and_has_the_weights_of_one_that_does_not():
    digits = load_data("digits")
    plain, equal = (
        model_of(replace(CONFIG, match_moments=asked), digits).eval() for asked in (False, True)
    )
    assert all(map(torch.equal, plain.state_dict().values(), equal.state_dict().values()))
    images = torch.rand(4, 1, 8, 8)
    mean, std = digits.mean[0], digits.std[0]
    changed = (matched(images * std + mean, average_moments(digits)) - mean) / std
    torch.testing.assert_close(equal(images), plain(changed), rtol=1e-4, atol=1e-4)


def test_corrupted_images_have_them_set_after_the_corruption():
    """Less light and less contrast are undone, whatever the network and its statistics."""
    config = replace(CONFIG, match_moments=True, shift="controls")
    model = model_of(config, load_data("digits")).eval()
    found = shifted_accuracy(model, config, load_data("digits"), torch.device("cpu"))
    assert set(found) == {"trained", "re-estimated", "test-batch"}
    for statistics in found.values():
        for condition in ("brightness/5", "contrast/5"):
            assert statistics[condition] == pytest.approx(statistics["clean"], abs=2 / 500)
    assert found["trained"]["noise/5"] != found["trained"]["clean"]
