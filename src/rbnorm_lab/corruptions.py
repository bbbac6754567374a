"""Test-time corruptions of images in five severities; the operations are torchvision's."""

# mypy: disable-error-code="no-any-return"
# torchvision has no types

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from rbnorm_lab.errors import UsageError
from rbnorm_lab.names import CORRUPTIONS, check_corruption

KINDS: Final = CORRUPTIONS
_LEAST_SIDE: Final = 8
_ELASTIC_SMOOTHNESS: Final = 0.07  # sides


def _noise(image: Tensor, strength: float) -> Tensor:
    """Gaussian noise of standard deviation ``strength``."""
    return v2.functional.gaussian_noise(image, sigma=strength)


def _impulse(image: Tensor, strength: float) -> Tensor:
    """A share ``strength`` of the values becomes 0 or 1, as often the one as the other."""
    draw = torch.rand(image.shape)
    return image.masked_fill(draw < strength / 2, 0).masked_fill(draw > 1 - strength / 2, 1)


def _blur(image: Tensor, strength: float) -> Tensor:
    """Gaussian blur of standard deviation ``strength`` sides, cut off at three of them.

    Sides below 28 pixels count as 28: less than half a pixel would change nothing.
    """
    sigma = strength * max(_side(image), 28)
    size = 2 * math.ceil(3 * sigma) + 1
    return v2.functional.gaussian_blur(image, [size, size], [sigma])


def _pixelate(image: Tensor, strength: float) -> Tensor:
    """Means over blocks of 1 / ``strength`` pixels by as many, which need not be a whole number."""
    rows, columns = (_block_means(side, strength) for side in image.shape[-2:])
    return rows @ image @ columns.T


def _block_means(side: int, strength: float) -> Tensor:
    """The matrix (side, side) that replaces every pixel by the mean of the block it falls in."""
    block = ((torch.arange(side) + 0.5) * strength).floor()
    same = (block[:, None] == block).float()
    return same / same.sum(1, keepdim=True)


def _jpeg(image: Tensor, strength: float) -> Tensor:
    """JPEG of quality ``strength``, by Pillow: torchvision's own is deprecated."""
    levels = v2.functional.to_dtype(image, torch.uint8, scale=True)
    file = io.BytesIO()
    v2.functional.to_pil_image(levels).save(file, "JPEG", quality=int(strength))
    decoded = v2.functional.pil_to_tensor(Image.open(file))
    return v2.functional.to_dtype(decoded, torch.float32, scale=True)


def _elastic(image: Tensor, strength: float) -> Tensor:
    """Smooth random displacements of standard deviation ``strength`` sides; edges repeat."""
    side = _side(image)
    smoothness = _ELASTIC_SMOOTHNESS * side
    # uniform draws on [-1, 1], smoothed, have standard deviation 1 / (2 sqrt(3 pi) smoothness),
    # and torchvision moves a pixel by half of alpha times what is drawn
    alpha = 4 * math.sqrt(3 * math.pi) * smoothness * strength * side
    margin = math.ceil(6 * strength * side)
    padded = v2.functional.pad(image, [margin], padding_mode="edge")
    moved = v2.ElasticTransform(alpha, smoothness)(padded)
    return v2.functional.center_crop(moved, list(image.shape[-2:]))


def _side(image: Tensor) -> int:
    return min(image.shape[-2:])


Change = Callable[[Tensor, float], Tensor]
_TABLE: Final[dict[str, tuple[Change, tuple[float, ...]]]] = {
    "noise": (_noise, (0.04, 0.06, 0.08, 0.12, 0.18)),
    "impulse": (_impulse, (0.01, 0.02, 0.04, 0.07, 0.12)),
    "blur": (_blur, (0.018, 0.026, 0.036, 0.048, 0.065)),
    "pixelate": (_pixelate, (0.75, 0.60, 0.46, 0.36, 0.25)),
    "contrast": (v2.functional.adjust_contrast, (0.90, 0.80, 0.70, 0.50, 0.30)),
    "brightness": (v2.functional.adjust_brightness, (0.80, 0.65, 0.50, 0.35, 0.20)),
    "jpeg": (_jpeg, (40, 20, 12, 7, 4)),
    "elastic": (_elastic, (0.015, 0.028, 0.042, 0.060, 0.080)),
}
"""What becomes of an image (C, H, W), and how strongly at each severity. Contrast is the share of
every value's distance from the mean of the grey image that is left, brightness the share of the
light."""


def corrupt(images: Tensor, kind: str, severity: int, seed: int, *, first: int = 0) -> Tensor:
    """Change images as a camera, a file or the light might; the same way every time.

    An image's result depends on the image, the kind, the severity, the seed and the image's number,
    ``first`` plus its place among ``images``, and on nothing else: not on how a set is split into
    batches, nor on torch's random numbers, whose state is left as it was. What is drawn for an
    image is the same for every kind and severity, so that a higher severity of one kind goes
    further in the same direction.

    Args:
        images: Shape (N, C, H, W) with 1 or 3 channels and sides of 8 pixels or more, of a floating
            type, with values from 0 to 1, on any device; the work is done on the CPU in float32.
        kind: One of :data:`KINDS`.
        severity: One of :data:`rbnorm_lab.names.SEVERITIES`, from mild to severe on Fashion-MNIST.
        seed: Seed of the random kinds, 0 or more.
        first: Number of the first image in the whole set.

    Returns:
        Images of the same shape, type, device and memory format, with values from 0 to 1.

    Raises:
        UsageError: An argument is not as above.
    """
    check_corruption(kind, severity)
    _check_images(images)
    change, strengths = _TABLE[kind]
    plain = images.detach().to("cpu", torch.float32).contiguous()  # draws fill memory in its order
    out = torch.empty_like(images)
    with torch.random.fork_rng(devices=()):
        for i, image in enumerate(plain):
            state = np.random.SeedSequence((seed, first + i)).generate_state(1)
            torch.default_generator.manual_seed(int(state[0]))
            out[i] = change(image, strengths[severity - 1]).clamp(0, 1)
    return out


def _check_images(images: Tensor) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or min(shape[2:]) < _LEAST_SIDE:
        raise UsageError(
            f"images to corrupt have shape (N, 1 or 3, H, W) with sides of {_LEAST_SIDE} or more, "
            f"not {shape}"
        )
    # written so that NaN fails
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise UsageError(
            f"images to corrupt have values from 0 to 1, not {images.min():.3g} to "
            f"{images.max():.3g}"
        )


class Corrupted:
    """A loader's standardised images, corrupted in the same way every time it is gone through.

    Args:
        loader: Yields pairs of images, standardised as (raw - mean) / std, and labels.
        kind: One of :data:`KINDS`.
        severity: One of :data:`rbnorm_lab.names.SEVERITIES`.
        mean: Mean by channel, as :class:`rbnorm_lab.data.ImageData` has it.
        std: Standard deviation by channel, likewise.
        seed: Seed of the random kinds.

    Raises:
        UsageError: There is no such kind or severity.
    """

    def __init__(
        self,
        loader: Any,
        kind: str,
        severity: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
    ) -> None:
        check_corruption(kind, severity)
        self.loader, self.kind, self.severity, self.seed = loader, kind, severity, seed
        self.mean, self.std = list(mean), list(std)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = 0
        for images, labels in self.loader:
            mean, std = (images.new_tensor(m).view(-1, 1, 1) for m in (self.mean, self.std))
            raw = (images * std + mean).clamp(0, 1)  # what rounding added
            changed = corrupt(raw, self.kind, self.severity, self.seed, first=first)
            first += len(images)
            yield (changed - mean) / std, labels
