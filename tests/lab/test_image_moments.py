"""Images of equal mean and contrast, before the network and nowhere else."""

from dataclasses import replace

import pytest
import torch
from support import CONFIG
from torch import nn

from rbnorm_lab.data import ImageData, Tensors, load_data
from rbnorm_lab.image_moments import average_moments, match_moments
from rbnorm_lab.shift import shifted_accuracy
from rbnorm_lab.train import model_of

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)


def standardised(images):
    mean, std = (torch.tensor(moment).view(-1, 1, 1) for moment in (MEAN, STD))
    return (images - mean) / std


@pytest.fixture
def raw():
    return torch.rand((7, 3, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def data(raw):
    dataset = Tensors(raw, torch.arange(len(raw)) % 2, standardised)
    return ImageData(dataset, dataset, dataset, 2, 3, MEAN, STD)


def literal(raw, data):
    """The definition, in float64, on pixel values over all channels."""
    x, known = raw.double(), data.test.tensors[0].double().flatten(1)
    m, s = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), correction=0, keepdim=True)
    return (x - m) * known.std(1, correction=0).mean() / s + known.mean()


def test_the_network_sees_them_once_in_training_and_in_evaluation(raw, data):
    seen = []
    model = nn.BatchNorm2d(3)
    match_moments(model, data)
    model.forward = lambda images: seen.append(images) or images
    other = (0.5 * raw + 0.1)[:3]
    for module in (model.train(), model.eval()):
        module(standardised(other))
    assert len(seen) == 2
    for images in seen:
        expected = standardised(literal(other, data))
        torch.testing.assert_close(images.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_of_a_constant_image_only_the_mean_is_set(value, data):
    """Standardised by channel and back, its values differ by rounding, which is no contrast."""
    model = nn.Identity()
    match_moments(model, data)
    expected = standardised(torch.full((1, 3, 8, 8), float(average_moments(data).mean)))
    found = model(standardised(torch.full((1, 3, 8, 8), value)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_run_asks_for_them_and_has_the_weights_of_one_that_does_not():
    digits = load_data("digits")
    plain, equal = (
        model_of(replace(CONFIG, match_moments=asked), digits).eval() for asked in (False, True)
    )
    assert all(map(torch.equal, plain.state_dict().values(), equal.state_dict().values()))
    images = torch.rand(4, 1, 8, 8)
    mean, std = digits.mean[0], digits.std[0]
    changed = (average_moments(digits)(images * std + mean) - mean) / std
    torch.testing.assert_close(equal(images), plain(changed), rtol=1e-4, atol=1e-4)


def test_corrupted_images_have_them_set_after_the_corruption():
    """Less light and less contrast are undone, whatever the network and its statistics."""
    config = replace(CONFIG, match_moments=True, shift="controls")
    model = model_of(config, load_data("digits")).eval()
    found = shifted_accuracy(model, config, load_data("digits"), torch.device("cpu"))
    assert set(found) == {"trained", "test-batch"}
    for statistics in found.values():
        for condition in ("brightness/5", "contrast/5"):
            assert statistics[condition] == pytest.approx(statistics["clean"], abs=2 / 500)
    assert found["trained"]["noise/5"] != found["trained"]["clean"]
