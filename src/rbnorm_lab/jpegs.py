"""CIFAR-10 as folders of JPEG files, each decoded once into memory."""

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
        decoded: Images that are decoded already, by index; those that are decoded now are added.

    Raises:
        UsageError: It is none; when indexed, an image cannot be decoded or has another size.
    """

    def __init__(
        self, path: Path, transform: Callable[[Tensor], Tensor], decoded: dict[int, Tensor]
    ) -> None:
        self.folder: Any = folder_of(path, None)
        self.transform, self.decoded = transform, decoded
        self.labels = torch.tensor(self.folder.targets)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.folder.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch of these images and labels."""
        images = torch.stack([self._image(index) for index in indices])
        return self.transform(images), self.labels[indices]

    def _image(self, index: int) -> Tensor:
        if index not in self.decoded:
            image, _ = self.folder[index]
            if image.size != (_SIDE, _SIDE):
                file, _ = self.folder.samples[index]
                raise UsageError(f"{file} is {image.width} x {image.height}, not {_SIDE} x {_SIDE}")
            self.decoded[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return self.decoded[index]


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
