"""CamVid's street scenes with their masks, decoded once into memory."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.evaluate import IGNORED
from rbnorm_lab.imagenet import IMAGENET_MOMENTS

CAMVID: Final = "camvid"
CLASSES: Final = 11
_VOID: Final = 11
_SIDE: Final = 180


class Scenes(Dataset[Any]):
    """Scenes in video order, indexed a whole batch at a time.

    Args:
        folder: The folder of CamVid.
        part: ``train``, ``val`` or ``test``; the masks are PNG files in ``PARTannot``.
        side: The scenes' height, to which images are scaled bicubically and masks by the nearest
            pixel; None for 180. The width is 4 / 3 of it.
        flips: Whether half of the scenes are mirrored, at random.

    Raises:
        UsageError: A folder or a mask is missing, or a file is no readable image.
    """

    def __init__(self, folder: Path, part: str, side: int | None, *, flips: bool) -> None:
        height = side or _SIDE
        size, where = (height * 4 // 3, height), folder / part
        files = sorted(f for f in where.glob("*") if f.suffix.lower() in IMG_EXTENSIONS)
        if not files:
            raise UsageError(f"there are no images in {where}: --data-root must have camvid/{part}")
        masks = [folder / f"{part}annot" / f"{file.stem}.png" for file in files]
        self.images = _read(files, "RGB", size, Image.Resampling.BICUBIC).permute(0, 3, 1, 2)
        labels = _read(masks, "L", size, Image.Resampling.NEAREST).long()
        self.labels = labels.masked_fill(labels >= _VOID, IGNORED)
        self.flips = flips

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch of these images (N, 3, H, W) and the classes of their pixels (N, H, W)."""
        mean, std = (torch.tensor(moment).view(3, 1, 1) for moment in IMAGENET_MOMENTS)
        images, labels = (self.images[indices] / 255 - mean) / std, self.labels[indices]
        if self.flips:
            chosen = torch.rand(len(indices)) < 0.5
            images[chosen], labels[chosen] = images[chosen].flip(3), labels[chosen].flip(2)
        return images, labels


def _read(
    files: list[Path], mode: str, size: tuple[int, int], resampling: Image.Resampling
) -> Tensor:
    pixels = []
    for file in files:
        try:
            with Image.open(file) as image:
                pixels.append(np.asarray(image.convert(mode).resize(size, resampling)))
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
            raise UsageError(f"{file} is no readable image ({first_line(error)})") from error
    return torch.from_numpy(np.stack(pixels))
