"""CamVid's street scenes with their masks, decoded once into memory."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from rbnorm_lab.errors import UsageError
from rbnorm_lab.evaluate import IGNORED
from rbnorm_lab.imagefolder import load_image

CAMVID: Final = "camvid"
CLASSES: Final = 11
_VOID: Final = 11
_SIDE: Final = 180


def scenes(folder: Path, part: str, side: int | None) -> tuple[Tensor, Tensor]:
    """Scenes (N, 3, H, W) as bytes, in video order, and the class of every pixel (N, H, W).

    Args:
        folder: The folder of CamVid.
        part: ``train``, ``val`` or ``test``; the masks are PNG files in ``PARTannot``.
        side: The scenes' height, to which images are scaled bicubically and masks by the nearest
            pixel; None for 180. The width is 4 / 3 of it.

    Raises:
        UsageError: A folder or a mask is missing, or a file is no readable image.
    """
    height = side or _SIDE
    size, where = (height * 4 // 3, height), folder / part
    files = sorted(f for f in where.glob("*") if f.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise UsageError(f"there are no images in {where}: --data-root must have camvid/{part}")
    masks = [folder / f"{part}annot" / f"{file.stem}.png" for file in files]
    images = [load_image(f).resize(size, Image.Resampling.BICUBIC) for f in files]
    labels = [load_image(f).resize(size, Image.Resampling.NEAREST) for f in masks]
    classes = _stacked(labels)[..., 0].long()
    return _stacked(images).permute(0, 3, 1, 2), classes.masked_fill(classes >= _VOID, IGNORED)


def _stacked(images: list[Any]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def mirrored(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the scenes, chosen at random, with their masks from right to left."""
    chosen = torch.rand(len(images)) < 0.5
    images[chosen], labels[chosen] = images[chosen].flip(3), labels[chosen].flip(2)
    return images, labels
