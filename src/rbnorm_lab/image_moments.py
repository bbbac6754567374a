"""Every image's own mean and contrast, set to the training images' average before a network.

An image's mean m and contrast s are one number each: the mean and the population standard deviation
of its pixel values, from 0 to 1, over all channels and positions. With M and S, the averages of m
and s over the training images, a value v becomes ``(v - m) * S / s + M``, which is not clipped; of
a constant image, whose s is 0, only the mean is set.

It is the first thing that a network does with a batch, in training as in testing: after crops,
flips and corruptions, once, to every image by itself.
"""

from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from rbnorm_lab.batches import loader_of
from rbnorm_lab.data import ImageData

_ROUNDING: Final = 1e-6
"""A contrast below this is that of a constant image, rounded: one step of one of 8 bits in one
value of an image of 224 x 224 pixels gives ten times as much."""
_BATCH: Final = 250


class Moments(NamedTuple):
    """Mean and contrast: of each image, of shape (N, 1, 1, 1), or of a set of images."""

    mean: Tensor
    std: Tensor


def moments_of(raw: Tensor) -> Moments:
    """Those of each image, of pixel values (N, C, H, W)."""
    mean = raw.mean((1, 2, 3), keepdim=True)
    return Moments(mean, (raw - mean).square().mean((1, 2, 3), keepdim=True).sqrt())


def matched(raw: Tensor, target: Moments) -> Tensor:
    """Images (N, C, H, W) of pixel values, with the target's mean and contrast in each."""
    mean, std = moments_of(raw)
    scale = torch.where(std > _ROUNDING, target.std / std, 1.0)
    return (raw - mean) * scale + target.mean


@lru_cache(maxsize=4)
def average_moments(data: ImageData) -> Moments:
    """The averages of both over the training images, without augmentation."""
    total = torch.zeros(2, dtype=torch.float64)
    for images, _ in loader_of(data.plain, _BATCH, None):
        total += torch.stack([m.double().sum() for m in moments_of(_raw(images, data))])
    return Moments(*total / data.size)


def match_moments(model: nn.Module, data: ImageData) -> None:
    """Let a model set the moments of the standardised images that it is given, from now on."""
    target = average_moments(data)

    def hook(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        mean, std = _by_channel(inputs[0], data)
        return (matched(_raw(inputs[0], data), target) - mean) / std

    model.register_forward_pre_hook(hook)


def _raw(images: Tensor, data: ImageData) -> Tensor:
    mean, std = _by_channel(images, data)
    return images * std + mean


def _by_channel(images: Tensor, data: ImageData) -> list[Tensor]:
    return [images.new_tensor(moment).view(-1, 1, 1) for moment in (data.mean, data.std)]
