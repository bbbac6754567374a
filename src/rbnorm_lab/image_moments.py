"""Every image's own mean and contrast, set to the training images' average before a network.

It is the first thing that a network does with a batch, in training as in testing: after crops,
flips and corruptions, once, to every image by itself. :class:`rbnorm.MatchMoments` takes the pixel
values from 0 to 1, over all channels and positions.
"""

from functools import lru_cache
from typing import Final

from torch import Tensor, nn

import rbnorm
from rbnorm_lab.batches import loader_of
from rbnorm_lab.data import ImageData

_BATCH: Final = 250


@lru_cache(maxsize=4)
def average_moments(data: ImageData) -> rbnorm.MatchMoments:
    """What sets an image to the average over the training images, without augmentation."""
    loader = loader_of(data.plain, _BATCH, None)
    return rbnorm.MatchMoments.of(_scaled(images, data)[0] for images, _ in loader)


def match_moments(model: nn.Module, data: ImageData) -> None:
    """Let a model set the moments of the standardised images that it is given, from now on."""
    match = average_moments(data)

    def hook(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        raw, mean, std = _scaled(inputs[0], data)
        equal: Tensor = match.to(raw.device)(raw)
        return (equal - mean) / std

    model.register_forward_pre_hook(hook)


def _scaled(images: Tensor, data: ImageData) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel values of standardised images, and the mean and deviation of each channel."""
    mean, std = (images.new_tensor(moment).view(-1, 1, 1) for moment in (data.mean, data.std))
    return images * std + mean, mean, std
