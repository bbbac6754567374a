"""Corruptions of known images against their formulas, and of real ones."""

import math
import random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_image
from tolerances import assert_close
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from rbnorm_lab.corruptions import KINDS, Corrupted, corrupt
from rbnorm_lab.data import collate, load_data
from rbnorm_lab.errors import UsageError
from rbnorm_lab.names import SEVERITIES, corruption

RANDOM = ("noise", "impulse", "elastic")


def digits():
    return torch.from_numpy(load_digits().images[:60]).float().unsqueeze(1) / 16


def photos():
    """Four pieces (3, 40, 61) of a photograph, their sides divided by four."""
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    photo = v2.functional.resize(photo, [106, 160]).float() / 255
    return torch.stack([photo[:, y : y + 40, x : x + 61] for x in (0, 90) for y in (0, 60)])


REAL = {"digits": digits, "photos": photos}


@pytest.fixture(params=REAL)
def images(request):
    return REAL[request.param]()


def test_noise_has_its_standard_deviation():
    grey = torch.full((20, 1, 64, 64), 0.5)  # six standard deviations from being cut off
    noise = (corrupt(grey, "noise", 3, 0) - grey).double()
    # five standard errors of a mean and of a standard deviation
    assert noise.mean().item() == pytest.approx(0, abs=5 * 0.08 / math.sqrt(noise.numel()))
    assert noise.std().item() == pytest.approx(0.08, rel=5 / math.sqrt(2 * noise.numel()))


def test_impulse_sets_its_share_to_black_and_white():
    grey = torch.full((20, 3, 32, 32), 0.5)
    changed = corrupt(grey, "impulse", 5, 0)
    assert set(changed.unique().tolist()) == {0, 0.5, 1}
    error = 5 * math.sqrt(0.06 * 0.94 / changed.numel())  # of a binomial share, five times
    for value in (0, 1):
        assert (changed == value).double().mean().item() == pytest.approx(0.06, abs=error)


@pytest.mark.parametrize(("side", "sigma"), [(32, 0.036 * 32), (13, 0.036 * 28)])
def test_blur_spreads_a_point_as_a_gaussian(side, sigma):
    point = torch.zeros(1, 1, side, side)
    point[..., side // 2, side // 2] = 1
    distance = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(distance**2) / (2 * sigma**2))
    line[distance.abs() > math.ceil(3 * sigma)] = 0
    line /= line.sum()
    assert_close(corrupt(point, "blur", 3, 0)[0, 0], line.outer(line), torch.float32)


def test_pixelate_takes_means_of_blocks():
    values = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    means = values.double().unflatten(3, (7, 4)).unflatten(2, (7, 4)).mean((3, 5))
    expected = means.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert_close(corrupt(values, "pixelate", 5, 0), expected, torch.float32)


def test_pixelate_takes_blocks_of_unequal_sizes_where_sides_do_not_divide():
    values = torch.rand(1, 1, 9, 13, generator=torch.Generator().manual_seed(0))
    rows, columns = ([int((i + 0.5) * 0.46) for i in range(side)] for side in (9, 13))
    expected = torch.empty(1, 1, 9, 13, dtype=torch.float64)
    for y in range(9):
        for x in range(13):
            inside = [
                values[0, 0, i, j].item()
                for i in range(9)
                for j in range(13)
                if (rows[i], columns[j]) == (rows[y], columns[x])
            ]
            expected[0, 0, y, x] = sum(inside) / len(inside)
    assert_close(corrupt(values, "pixelate", 3, 0), expected, torch.float32)


def test_contrast_keeps_a_share_of_the_distance_from_the_mean(images):
    exact = images.double()
    # the luma of ITU-R BT.601, as torchvision rounds it
    luma = torch.tensor([0.2989, 0.587, 0.114] if images.shape[1] == 3 else [1.0]).double()
    mean = (exact * luma.view(-1, 1, 1)).sum(1).mean((1, 2)).view(-1, 1, 1, 1)
    expected = (mean + 0.7 * (exact - mean)).clamp(0, 1)
    assert_close(corrupt(images, "contrast", 3, 0), expected, torch.float32)


def test_brightness_keeps_a_share_of_the_light(images):
    assert_close(corrupt(images, "brightness", 3, 0), 0.5 * images.double(), torch.float32)


def test_jpeg_keeps_even_colours():
    colours = torch.tensor([[0.8, 0.2, 0.4], [0.0, 1.0, 0.0]]).view(2, 3, 1, 1)
    changed = corrupt(colours.expand(2, 3, 17, 24), "jpeg", 1, 0)
    # at quality 40 the mean of a block is coded in steps of 20 / 8 levels of brightness and of
    # 21 / 8 of colour, of which the conversion to RGB takes up to 1.8
    assert (changed - colours).abs().max().item() < 6 / 255
    assert (changed - changed[..., :1, :1]).abs().max().item() == 0


def test_elastic_leaves_even_images_even():
    colours = torch.tensor([0.0, 0.3, 1.0]).view(3, 1, 1, 1).expand(3, 1, 28, 31)
    assert_close(corrupt(colours, "elastic", 5, 0), colours.double(), torch.float32)


def test_elastic_moves_pixels_by_its_standard_deviation():
    side = 64
    ramp = torch.linspace(0, 1, side).expand(60, 1, side, side)  # its values are the positions
    moved = (corrupt(ramp, "elastic", 3, 0) - ramp) * (side - 1) / side
    inner = moved[..., 16:48, 16:48].double()  # far from the edges, which repeat
    # displacements are alike over some 16 pixels, so an image has about four of them: the standard
    # error of the standard deviation is 1 / sqrt(2 * 240) of it
    assert inner.std().item() == pytest.approx(0.042, rel=0.13)


@pytest.mark.parametrize("kind", KINDS)
def test_severity_grows(kind, images):
    errors = [(corrupt(images, kind, s, 0) - images).square().mean().item() for s in SEVERITIES]
    assert errors[0] > 0
    assert errors == sorted(set(errors))


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_random_kinds_alone(kind, images):
    first, again, other = (corrupt(images, kind, 3, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (kind not in RANDOM)


@pytest.mark.parametrize("kind", RANDOM)
def test_every_image_has_draws_of_its_own(kind):
    image = digits()[:1].expand(2, 1, 8, 8)
    first, second = corrupt(image, kind, 3, 0)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_batch(kind, images):
    whole = corrupt(images, kind, 3, 0)
    for first, end in ((0, 0), (0, 1), (1, 4)):
        part = corrupt(images[first:end], kind, 3, 0, first=first)
        assert torch.equal(part, whole[first:end])


@pytest.mark.parametrize("kind", KINDS)
def test_memory_format_and_strides_do_not_matter(kind):
    images = photos()
    expected = corrupt(images, kind, 3, 0)
    permuted = images.contiguous(memory_format=torch.channels_last)
    changed = corrupt(permuted, kind, 3, 0)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(changed, expected)
    strided = torch.stack([images, images], -1).flatten(3)[..., ::2]
    assert torch.equal(corrupt(strided, kind, 3, 0), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_other_types_are_rounded_once(kind, dtype):
    images = photos().to(dtype)
    expected = corrupt(images.float(), kind, 3, 0).to(dtype)
    assert torch.equal(corrupt(images, kind, 3, 0), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_changes(kind, images):
    before = images.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    changed = corrupt(images, kind, 5, 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert changed.min().item() >= 0
    assert changed.max().item() <= 1


GOOD = torch.full((1, 1, 8, 8), 0.5)
BAD = {
    "unknown corruption 'fog': choose from noise, ": (GOOD, "fog", 3, 0),
    "unknown severity 0 of blur: choose from 1, 2, 3, 4, 5": (GOOD, "blur", 0, 0),
    "unknown severity 6 of noise": (GOOD, "noise", 6, 0),
    "not (8, 8)": (GOOD[0, 0], "noise", 3, 0),
    "not (1, 2, 8, 8)": (GOOD.expand(1, 2, 8, 8), "noise", 3, 0),
    "sides of 8 or more, not (1, 1, 8, 7)": (GOOD[..., 1:], "noise", 3, 0),
    "values from 0 to 1, not -0.5 to -0.5": (GOOD - 1, "noise", 3, 0),
    "values from 0 to 1, not 1.5 to 1.5": (GOOD + 1, "noise", 3, 0),
    "values from 0 to 1, not nan to nan": (GOOD * math.nan, "noise", 3, 0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(UsageError) as caught:
        corrupt(*BAD[message])
    assert message in str(caught.value)


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("kind", ["impulse", "contrast"])
def test_a_loader_gives_its_corrupted_images_standardised(kind, rgb):
    data = load_data("digits", rgb=rgb)
    loader = DataLoader(data.test, 192, collate_fn=collate)  # the last batch is smaller
    corrupted = Corrupted(loader, kind, 3, mean=data.mean, std=data.std, seed=1)
    assert len(corrupted) == 3
    images, labels = map(torch.cat, zip(*corrupted, strict=True))
    raw = data.test.tensors[0].expand(-1, data.channels, -1, -1)
    mean, std = (torch.tensor(m).view(-1, 1, 1).double() for m in (data.mean, data.std))
    expected = (corrupt(raw, kind, 3, 1).double() - mean) / std
    assert_close(images, expected, torch.float32)
    assert torch.equal(labels, data.test.tensors[1])
    again, _ = map(torch.cat, zip(*corrupted, strict=True))
    assert torch.equal(again, images)


def test_a_loader_refuses_what_is_no_corruption():
    for kind, severity in (("fog", 3), ("noise", 0)):
        with pytest.raises(UsageError, match="unknown"):
            Corrupted([], kind, severity, mean=(0.0,), std=(1.0,))


def test_a_name_has_a_kind_and_a_severity():
    assert corruption("contrast") == ("contrast", 3)
    assert [corruption(f"jpeg:{s}") for s in SEVERITIES] == [("jpeg", s) for s in SEVERITIES]
    assert [corruption(name) for name in ("train", "imagefolder:noise", "")] == [None, None, None]


@pytest.mark.parametrize(
    "name", ["noise:", "noise:0", "noise:6", "noise:-1", "noise:3.0", "blur:x"]
)
def test_a_name_without_a_severity_after_its_colon(name):
    with pytest.raises(UsageError, match=r"^unknown severity .* choose from 1, 2, 3, 4, 5$"):
        corruption(name)
