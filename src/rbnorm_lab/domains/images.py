"""Images of several domains in one tensor, and the batches that a device makes of them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms import v2

from rbnorm_lab.data import ImageData, Tensors
from rbnorm_lab.errors import UsageError
from rbnorm_lab.evaluate import on
from rbnorm_lab.imagefolder import IMAGENET_MOMENTS, squares

_HELD_OUT: Final = 10  # one image of so many
_SPLIT_SEED: Final = 0
_LEAST_SIDE: Final = 0.7  # of the image's, for a random crop
TEST_IMAGES: Final = 512
"""Images that are tested at a time."""


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
    """

    name: str
    images: Tensor
    labels: Tensor
    domain_of: Tensor
    held_out: Tensor
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    digest: str

    def to(self, device: torch.device) -> "DomainImages":
        """The same with its tensors on a device."""
        names = ("images", "labels", "domain_of", "held_out")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def without(self, target: str) -> ImageData:
        """Images to train on, and to test on, when this domain is the target."""
        augmented, plain = (
            Tensors(self.images, self.labels, transform) for transform in (_AUGMENTED, _PLAIN)
        )
        train, test = (part(target).tolist() for part in (self.training, self.source_test))
        return ImageData(
            Subset(augmented, train),
            Subset(plain, train),
            Subset(plain, test),
            len(self.classes),
            3,
            *IMAGENET_MOMENTS,
            device=self.images.device,
        )

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
    files: list[Path] = []
    labels: list[int] = []
    of: list[int] = []
    held_out: list[bool] = []
    numbers = {name: c for c, name in enumerate(classes)}
    for d, domain in enumerate(domains):
        try:
            found = make_dataset(str(folder / domain), numbers, IMG_EXTENSIONS)
        except FileNotFoundError as error:  # a class that has none
            raise UsageError(f"every domain needs images, {folder / domain} lacks some") from error
        files += [Path(path) for path, _ in found]
        own = [label for _, label in found]
        labels += own
        of += [d] * len(found)
        held_out += [kept for c in numbers.values() for kept in _kept_back(own.count(c))]
    sizes = "".join(f"{path.relative_to(folder)} {path.stat().st_size}\n" for path in files)
    return DomainImages(
        folder.name,
        squares(files, side),
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


def random_crops(images: Tensor) -> Tensor:
    """Each image cropped to a square of 0.7 to 1 of its side and scaled back; half are mirrored.

    What is random is drawn on the CPU, so that a seed means the same on every device.
    """
    count, device = len(images), images.device
    side = _LEAST_SIDE + (1 - _LEAST_SIDE) * torch.rand(count)
    shift = (2 * torch.rand(count, 2) - 1) * (1 - side[:, None])
    flip = 1 - 2 * torch.randint(2, (count,))
    zero = torch.zeros(count)
    rows = (
        torch.stack((side * flip, zero, shift[:, 0]), 1),
        torch.stack((zero, side, shift[:, 1]), 1),
    )
    maps = torch.stack(rows, 1).to(device)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


_DECODED: Final = v2.ToDtype(torch.float32, scale=True)
_STANDARDISED: Final = v2.Normalize(*IMAGENET_MOMENTS)
_AUGMENTED: Final = v2.Compose([_DECODED, random_crops, _STANDARDISED])
_PLAIN: Final = v2.Compose([_DECODED, _STANDARDISED])


def unchanged(images: DomainImages, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """These images in this order, with labels, in large batches."""
    for part in chosen.split(TEST_IMAGES):
        yield on(part.device, _PLAIN(images.images[part])), images.labels[part]
