"""How far the images of a second data set lie from the first's, before any layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rbnorm.diagnosis.meter import Thresholds
from rbnorm.diagnosis.tally import Tally

_OFF = 0.25  # standard deviations by which the average image's mean must move to count
_COLUMNS = 7
_FACTOR = 1.25  # by which its contrast must


def own_moments(x: Tensor, dims: int, by_channel: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each instance of ``dims`` axes, kept as axes of 1."""
    axes = tuple(range(by_channel - dims, 0))
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(axes, keepdim=True)
    return mean, (x - mean).square().mean(axes, keepdim=True).sqrt()


def image_table(x: Tensor) -> Tensor:
    """Mean and standard deviation of every instance of an input (N, ...), (N, 2) in float64."""
    x = x.detach() if x.ndim > 1 else x.detach().reshape(-1, 1)
    return torch.stack(own_moments(x, x.ndim - 1), 1).flatten(1).cpu().double()


class Images:
    """What enters a model, in sums.

    Args:
        first: The images of the first data set, to compare these with.
        thresholds: Beyond what an image counts as one of the four cases.
    """

    def __init__(self, first: Images | None, thresholds: Thresholds) -> None:
        self.tally, self.first, self.thresholds = Tally(), first, thresholds

    def __call__(self, x: Tensor) -> None:
        """Take in an input; those without positions are no images."""
        if x.ndim > 2:
            self.add(image_table(x))

    def add(self, table: Tensor) -> None:
        """Take in a table."""
        mean, std = table.T
        columns = [mean, std.square()]
        if self.first is not None and self.first.tally.count.numel():
            typical, within, deviation = self.first.typical()
            offset, log_var = (mean - typical) / deviation, (std.square() / within).log()
            limit = self.thresholds
            columns += [
                offset,
                *(case.double() for case in (offset < -limit.mean, offset > limit.mean)),
                *(case.double() for case in (log_var < -limit.log_var, log_var > limit.log_var)),
            ]
        self.tally.add(torch.stack(columns, 1))

    def typical(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance within an image, and standard deviation of all values."""
        _, mean, var = self.tally.result()
        return mean[0], mean[1], (mean[1] + var[0]).sqrt()


@dataclass(frozen=True)
class ImageShift:
    """The images of a second data set against those of the first.

    The mean and the standard deviation of an image are those of all its values. "Typical" are the
    average mean of the first data's images, and the root mean square of their standard deviations.

    Attributes:
        mean: How far the average mean lies from the typical one, in standard deviations of all
            values of the first data.
        contrast: The root mean square of the standard deviations over the typical one.
        mean_below: Share of images whose mean is below the typical one by more than the threshold.
        mean_above: Likewise above.
        var_below: Share of images whose variance is below the typical one by more than a factor.
        var_above: Likewise above.
    """

    mean: float
    contrast: float
    mean_below: float
    mean_above: float
    var_below: float
    var_above: float

    @classmethod
    def of(cls, second: Images) -> ImageShift | None:
        """From what two passes saw; None without images, or where all of the first are constant."""
        found = second.tally.result()[1]
        if second.first is None or found.numel() < _COLUMNS:
            return None
        _, within, offset, *cases = found.tolist()
        typical = float(second.first.typical()[1])
        return cls(offset, math.sqrt(within / typical), *cases) if typical else None

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
        """How far they lie apart, and what to do about it."""
        found = (
            f"The second data's images are {abs(self.mean):.2f} standard deviations "
            f"{'darker' if self.mean < 0 else 'brighter'} than the first's, and their contrast is "
            f"{self.contrast:.2f} times theirs"
        )
        if self.moved is None:
            return f"{found}: neither is what is wrong."
        what = {"both": "mean and contrast"}.get(self.moved, self.moved)
        return f'{found}: set their {what}, rbnorm.MatchMoments.of(first, "{self.moved}").'
