"""Images of several domains in one tensor, and the batches that a device makes of them."""

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets.folder import IMG_EXTENSIONS

from rbnorm.lab.errors import UsageError, first_line
from rbnorm.lab.imagenet import IMAGENET_MOMENTS

_HELD_OUT: Final = 10  # one image of so many
_SPLIT_SEED: Final = 0
_LEAST_SIDE: Final = 0.7  # of the image's, for a random crop
_TEST_BATCH: Final = 512


@dataclass(frozen=True)
class DomainImages:
    """Images of several domains with the same classes.

    Attributes:
        name: Name of their folder.
        images: As bytes (N, 3, S, S).
        labels: The class of each (N,).
        domain_of: The domain of each (N,).
        held_out: Whether each is kept from training (N,): a fixed tenth of every class and domain.
        domains: Names of the domains, in alphabetical order.
        classes: Names of the classes, likewise.
        digest: Of the files' names and sizes.
        layout: How a device has its batches.
    """

    name: str
    images: Tensor
    labels: Tensor
    domain_of: Tensor
    held_out: Tensor
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    digest: str
    layout: torch.memory_format = torch.channels_last

    def to(self, device: torch.device) -> "DomainImages":
        """The same with its tensors on a device."""
        names = ("images", "labels", "domain_of", "held_out")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def share(self) -> "DomainImages":
        """The same in memory that processes share."""
        for tensor in (self.images, self.labels, self.domain_of, self.held_out):
            tensor.share_memory_()
        return self

    def training(self, target: str) -> Tensor:
        """Indices of the images to train on when this domain is the target."""
        return self._where((self.domain_of != self.domains.index(target)) & ~self.held_out)

    def source_test(self, target: str) -> Tensor:
        """Indices of the held-out images of the other domains."""
        return self._where((self.domain_of != self.domains.index(target)) & self.held_out)

    def target_test(self, target: str) -> Tensor:
        """Indices of all images of this domain, in a random but fixed order."""
        found = self._where(self.domain_of == self.domains.index(target))
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(_SPLIT_SEED))
        return found[order.to(found.device)]

    @staticmethod
    def _where(mask: Tensor) -> Tensor:
        return mask.nonzero().squeeze(1)


def load_domains(folder: Path, side: int) -> DomainImages:
    """Read ``FOLDER/DOMAIN/CLASS/IMAGE``.

    Args:
        folder: The folder; every domain has the same classes.
        side: Side of the square that an image is scaled and cropped to.

    Raises:
        UsageError: The folder has another layout, or an image cannot be decoded.
    """
    if not folder.is_dir():
        raise UsageError(f"--images {folder}: there is no such folder")
    domains = _folders(folder)
    classes = sorted({name for domain in domains for name in _folders(folder / domain)})
    if len(domains) < 2 or len(classes) < 2:
        raise UsageError(
            f"{folder} must hold DOMAIN/CLASS/IMAGE with two domains and two classes or more, "
            f"not {len(domains)} domains and {len(classes)} classes"
        )
    files, labels, of, held_out = [], [], [], []
    for d, domain in enumerate(domains):
        for c, name in enumerate(classes):
            found = sorted(
                path
                for path in (folder / domain / name).glob("*")
                if path.suffix.lower() in IMG_EXTENSIONS
            )
            if not found:
                raise UsageError(f"{folder / domain / name} has no image: every domain needs one")
            files += found
            labels += [c] * len(found)
            of += [d] * len(found)
            held_out += _kept_back(len(found))
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(lambda path: _decoded(path, side), files)))
    sizes = "".join(f"{path.relative_to(folder)} {path.stat().st_size}\n" for path in files)
    return DomainImages(
        folder.name,
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels),
        torch.tensor(of),
        torch.tensor(held_out),
        tuple(domains),
        tuple(classes),
        hashlib.sha256(sizes.encode()).hexdigest()[:16],
    )


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _kept_back(count: int) -> list[bool]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return (order < max(1, count // _HELD_OUT)).tolist() if count > 1 else [False]


def _decoded(path: Path, side: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
        raise UsageError(f"{path} is no readable image ({first_line(error)})") from error
    if rgb.size != (side, side):
        rgb = ImageOps.fit(rgb, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def augmented(images: DomainImages, chosen: Tensor, random: torch.Generator) -> Tensor:
    """These images in colour from -2 to 3 or so, cropped and flipped at random, all at once.

    The crop is a square of 0.7 to 1 of the side, scaled back bilinearly.

    Args:
        images: All images.
        chosen: Indices of the batch.
        random: A generator on the CPU, so that a seed means the same on every device.
    """
    count = len(chosen)
    side = _LEAST_SIDE + (1 - _LEAST_SIDE) * torch.rand(count, generator=random)
    shift = (2 * torch.rand(count, 2, generator=random) - 1) * (1 - side[:, None])
    flip = 1 - 2 * torch.randint(2, (count,), generator=random)
    zero = torch.zeros(count)
    rows = (
        torch.stack((side * flip, zero, shift[:, 0]), 1),
        torch.stack((zero, side, shift[:, 1]), 1),
    )
    maps = torch.stack(rows, 1).to(images.images.device)
    batch = images.images[chosen].float()
    grid = F.affine_grid(maps, list(batch.shape), align_corners=False)
    cropped = F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    return _standardised(cropped, images.layout)


def unchanged(images: DomainImages, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """These images in this order, with labels, in large batches."""
    for part in chosen.split(_TEST_BATCH):
        yield _standardised(images.images[part].float(), images.layout), images.labels[part]


def _standardised(batch: Tensor, layout: torch.memory_format) -> Tensor:
    mean, std = _moments(batch.device)
    return ((batch - mean) / std).contiguous(memory_format=layout)


@cache
def _moments(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (
        255 * torch.tensor(moment, device=device).view(1, 3, 1, 1) for moment in IMAGENET_MOMENTS
    )
    return mean, std


def steps_of(images: DomainImages, target: str, epochs: int, batch_size: int) -> int:
    """Optimiser steps of a run; an incomplete batch is left out.

    Raises:
        UsageError: There is no complete batch.
    """
    count = len(images.training(target))
    if count < batch_size:
        raise UsageError(
            f"batch size {batch_size} is more than the {count} training images without {target}"
        )
    return epochs * math.floor(count / batch_size)
