"""A small classification task that needs no download: of which photograph is this a part?"""

from dataclasses import dataclass
from typing import Final

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import TensorDataset

from rbnorm_lab.data import ImageData

SIDE: Final = 48
"""Pixels of a part's side."""

_SHRINK: Final = 3
_TRAINING, _TEST = 480, 160  # parts
_CONTRAST, _BRIGHTNESS = 0.4, 0.25  # the most by which ln c, and b, differ from 0


@dataclass(frozen=True)
class Photograph:
    """A photograph that scikit-learn ships, both under CC BY 2.0.

    Attributes:
        name: What it shows, in English and in Chinese.
        author: Whom its file names, and where it is from.
    """

    name: tuple[str, str]
    author: str
    source: str


PHOTOGRAPHS: Final = (
    Photograph(
        ("a palace in China", "中国的宫殿"),
        "danielbuechele",
        "https://www.flickr.com/photos/danielbuechele/6061409035/",
    ),
    Photograph(
        ("a flower", "花"), "vultilion", "https://www.flickr.com/photos/vultilion/6056698931/"
    ),
)


def photographs() -> list[Tensor]:
    """The photographs (3, H, W) from 0 to 1, at a third of their size."""
    raw = [torch.from_numpy(image.copy()) for image in load_sample_images().images]
    return [avg_pool2d(image.permute(2, 0, 1).float() / 255, _SHRINK) for image in raw]


def photograph_parts() -> ImageData:
    """Square parts of the photographs, standardised; those of the right halves are held out.

    The light of the training parts varies: each is ``c (x - mean) + mean + b`` of its part x, with
    random contrast c and brightness b of its own, so that a norm has something to calibrate.
    """
    whole = photographs()
    flat = torch.cat([image.flatten(1) for image in whole], 1)
    mean, std = flat.mean(1), flat.std(1)
    generator = torch.Generator().manual_seed(0)
    seen, labels = _parts(whole, (0, 0.5), _TRAINING, generator)
    held_out, held_out_labels = _parts(whole, (0.5, 1), _TEST, generator)
    contrast, brightness = (
        limit * (2 * torch.rand(len(seen), 1, 1, 1, generator=generator) - 1)
        for limit in (_CONTRAST, _BRIGHTNESS)
    )
    centre, scale = mean[:, None, None], std[:, None, None]
    seen = contrast.exp() * (seen - centre) + brightness
    train = TensorDataset(seen / scale, labels)
    test = TensorDataset((held_out - centre) / scale, held_out_labels)
    moments = tuple(mean.tolist()), tuple(std.tolist())
    return ImageData(train, train, test, len(whole), 3, *moments)


def _parts(
    whole: list[Tensor], between: tuple[float, float], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random parts between two shares of the width, and the number of each one's photograph."""
    labels = torch.arange(count) % len(whole)
    parts = []
    for label in labels.tolist():
        image = whole[label]
        height, width = image.shape[1:]
        low, high = int(between[0] * width), int(between[1] * width) - SIDE
        x = low + int(torch.randint(high - low + 1, (), generator=generator))
        y = int(torch.randint(height - SIDE + 1, (), generator=generator))
        parts.append(image[:, y : y + SIDE, x : x + SIDE])
    return torch.stack(parts), labels
