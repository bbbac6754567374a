"""How far the images of a second data set lie from the first's, before any layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_OFF = 0.25  # standard deviations by which the average image's mean must move to count
_FACTOR = 1.25  # by which its contrast must


def own_moments(x: Tensor, dims: int, by_channel: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each instance of ``dims`` axes, kept as axes of 1."""
    axes = tuple(range(by_channel - dims, 0))
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(axes, keepdim=True)
    return mean, (x - mean).square().mean(axes, keepdim=True).sqrt()


class Images:
    """The mean and the standard deviation of every instance that enters a model.

    Attributes:
        dims: Axes of an instance; images have two or more.
    """

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.dims = 0

    def __call__(self, x: Tensor) -> None:
        """Take in the input (N, ...) of a model."""
        self.dims = x.ndim - 1
        x = x.detach() if self.dims > 0 else x.detach().reshape(-1, 1)
        self.parts.append(torch.stack(own_moments(x, x.ndim - 1), 1).flatten(1).cpu().double())

    @property
    def table(self) -> Tensor:
        """Both of each instance, (N, 2) in float64."""
        return torch.cat(self.parts) if self.parts else torch.empty(0, 2, dtype=torch.float64)


@dataclass(frozen=True)
class ImageShift:
    """The images of a second data set against those of the first.

    The mean and the standard deviation of an image are those of all its values. "Typical" are the
    average mean of the first data's images, and the root mean square of their standard deviations.

    Attributes:
        mean: How far the average mean lies from the typical one, in standard deviations of all
            values of the first data.
        contrast: The root mean square of the standard deviations over the typical one.
    """

    mean: float
    contrast: float

    @classmethod
    def of(cls, first: Images, second: Images) -> ImageShift | None:
        """From two passes; None without images, or where all of the first are constant."""
        if min(first.dims, second.dims) < 2:
            return None
        known, seen = (data.table[data.table.isfinite().all(1)] for data in (first, second))
        typical, within = known[:, 0].mean(), known[:, 1].square().mean()
        if not (within > 0 and len(seen)):
            return None
        offset = (seen[:, 0] - typical) / (within + known[:, 0].var(correction=0)).sqrt()
        return cls(float(offset.mean()), float((seen[:, 1].square().mean() / within).sqrt()))

    @property
    def moved(self) -> str | None:
        """What is wrong with the images: "mean", "contrast", "both" or None.

        The mean, where it moved by more than a quarter of a standard deviation; the contrast, where
        it changed by more than a quarter.
        """
        mean = abs(self.mean) > _OFF
        contrast = abs(math.log(self.contrast)) > math.log(_FACTOR) if self.contrast else False
        if mean and contrast:
            return "both"
        return "mean" if mean else "contrast" if contrast else None

    @property
    def sentence(self) -> str:
        """How far they lie apart, and what to do about it, without what rounds to nothing."""
        mean, contrast = f"{abs(self.mean):.2f}", f"{self.contrast:.2f}"
        side = "darker than" if self.mean < 0 else "brighter than"
        light = "as bright as" if mean == "0.00" else f"{mean} standard deviations {side}"
        height = f"{contrast} times theirs" if contrast != "1.00" else "the same"
        found = f"The second data's images are {light} the first's, and their contrast is {height}"
        if self.moved is None:
            return f"{found}: neither needs to be set."
        what = {"both": "mean and contrast"}.get(self.moved, self.moved)
        return f'{found}: set their {what}, rbnorm.MatchMoments.of(first, "{self.moved}").'
