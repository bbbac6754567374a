"""CIFAR-10 as folders of JPEG files, each decoded once into memory."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from rbnorm_lab.errors import UsageError
from rbnorm_lab.imagefolder import folder_of

CIFAR10_JPEG: Final = "cifar10-jpeg"
_SIDE: Final = 32


class JpegImages(Dataset[Any]):
    """Images of a folder with a folder for every class, indexed a whole batch at a time.

    Args:
        path: The folder.
        transform: What becomes of a batch (N, 3, 32, 32) of bytes.

    Raises:
        UsageError: It is none; when indexed, an image cannot be decoded or has another size.
    """

    def __init__(self, path: Path, transform: Callable[[Tensor], Tensor]) -> None:
        self.folder: Any = folder_of(path, None)
        self.transform = transform
        self.labels = torch.tensor(self.folder.targets)
        # one tensor: as small ones among a training's large ones they would scatter its memory
        self.decoded = torch.empty((len(self.labels), 3, _SIDE, _SIDE), dtype=torch.uint8)
        self.known = [False] * len(self.labels)

    def prepared(self, transform: Callable[[Tensor], Tensor]) -> "JpegImages":
        """The same images, decoded once for both, with another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.folder.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch of these images and labels."""
        for index in indices:
            if not self.known[index]:
                self._decode(index)
        return self.transform(self.decoded[indices]), self.labels[indices]

    def _decode(self, index: int) -> None:
        image, _ = self.folder[index]
        if image.size != (_SIDE, _SIDE):
            file, _ = self.folder.samples[index]
            raise UsageError(f"{file} is {image.width} x {image.height}, not {_SIDE} x {_SIDE}")
        self.decoded[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        self.known[index] = True


def cropped_and_flipped(images: Tensor) -> Tensor:
    """Each image moved by up to an eighth of its side, with zeros behind it, and half mirrored."""
    count, _, height, width = images.shape
    pad = height // 8
    padded = F.pad(images, 4 * (pad,))
    rows = torch.randint(2 * pad + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(2 * pad + 1, (count, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
