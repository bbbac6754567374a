"""The diagnosis begins at the image: what was planted there is what is found."""

import json

import pytest
import torch
from torch import nn

import rbnorm


def centre(x):
    return x.mean((1, 2, 3), keepdim=True)


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(64, 1, 1, 1, generator=generator)
    return torch.randn(64, 3, 8, 8, generator=generator) + 0.5 * own


@pytest.mark.parametrize(
    ("change", "moved", "said"),
    [
        (lambda x: x - 1, "mean", "darker than the first's"),
        (lambda x: x + 1, "mean", "brighter than the first's"),
        (lambda x: centre(x).lerp(x, 0.3), "contrast", "0.30 times theirs: set their contrast"),
        (lambda x: 0.3 * x - 1, "both", 'MatchMoments.of(first, "both")'),
        (lambda x: x.flip(3) + 0.05, None, "neither needs to be set"),
    ],
)
def test_what_was_planted_is_named(x, change, moved: str | None, said: str) -> None:
    found = rbnorm.diagnose(nn.BatchNorm2d(3), x.split(20), shifted=change(x).split(9)).images
    assert found.moved == moved
    assert said in found.sentence


def test_the_numbers_are_the_literal_ones(x) -> None:
    x = x.double()
    other = (0.6 * x - torch.linspace(0, 2, 64, dtype=x.dtype).view(64, 1, 1, 1)).flatten(1)
    found = rbnorm.diagnose(nn.BatchNorm2d(3).double(), [x], shifted=[other.view_as(x)]).images
    offset = (other.mean(1) - x.mean()) / x.std(correction=0)
    within = x.flatten(1).var(1, correction=0).mean()
    ratio = other.var(1, correction=0) / within
    assert found.mean == pytest.approx(float(offset.mean()), rel=1e-9)
    assert found.contrast == pytest.approx(float(ratio.mean().sqrt()), rel=1e-9)


def test_they_are_those_of_the_models_input_whatever_the_batch() -> None:
    x = torch.randn(8, 2, 4, 4)
    first, second = [{"pixels": x}], [{"pixels": x}]

    def forward(model, batch):
        return model(batch["pixels"] if batch is first[0] else batch["pixels"] - 3)

    found = rbnorm.diagnose(nn.BatchNorm2d(2), first, shifted=second, forward=forward).images
    assert found.moved == "mean"


def test_what_has_no_positions_is_no_image() -> None:
    x = torch.randn(8, 5)
    assert rbnorm.diagnose(nn.BatchNorm1d(5), [x], shifted=[x - 3]).images is None


def test_constant_images_have_no_contrast_to_set(x) -> None:
    constant = torch.ones_like(x)
    found = rbnorm.diagnose(nn.BatchNorm2d(3), [x], shifted=[constant]).images
    assert (found.contrast, found.moved) == (0.0, "mean")
    assert rbnorm.diagnose(nn.BatchNorm2d(3), [constant], shifted=[x]).images is None


def test_they_are_written_and_printed(x, tmp_path) -> None:
    result = rbnorm.diagnose(nn.BatchNorm2d(3), [x], shifted=[x - 1])
    result.to_json(tmp_path / "diagnosis.json")
    images = json.loads((tmp_path / "diagnosis.json").read_text())["images"]
    assert images["mean"] == result.images.mean
    assert images["moved"] == "mean"
    assert str(result).startswith("The second data's images are")
    assert max(map(len, str(result).splitlines())) <= 80
