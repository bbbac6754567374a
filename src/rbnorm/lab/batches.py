"""The images that a diagnosis is made of: in which order, how many, and how changed."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2

from rbnorm.lab.config import CORRUPTIONS
from rbnorm.lab.data import canonical_name, collate
from rbnorm.lab.errors import UsageError, first_line

_SEED: Final = 0


def loader_of(dataset: Dataset[Any], batch_size: int, limit: int | None) -> DataLoader[Any]:
    """Images in a random but fixed order: neighbours stand for batches."""
    order = torch.randperm(
        len(dataset),  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(_SEED),
    )
    return DataLoader(Subset(dataset, order[:limit].tolist()), batch_size, collate_fn=collate)


class Batches:
    """A loader whose batches count on a progress bar, every time it is gone through."""

    def __init__(self, loader: Any, on_batch: Callable[[], None]) -> None:
        self.loader, self.on_batch = loader, on_batch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            self.on_batch()


class Corrupted:
    """A loader's standardised images, changed in the same way every time."""

    def __init__(self, loader: Any, kind: str) -> None:
        self.loader, self.kind = loader, kind

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(_SEED)
        for images, labels in self.loader:
            yield _corrupt(images, self.kind, generator), labels


def _corrupt(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    if kind == "noise":
        return images + 0.5 * torch.randn(images.shape, generator=generator)
    if kind == "blur":
        return v2.functional.gaussian_blur(images, [3, 3])  # type: ignore[no-any-return]
    return 0.5 * images if kind == "contrast" else images + 0.5


def check_shifted(name: str | None) -> None:
    """Raise UsageError for what is no second data set."""
    if name is None or name in (*CORRUPTIONS, "train"):
        return
    try:
        canonical_name(name)
    except UsageError as error:
        known = ", ".join(("train", *CORRUPTIONS))
        raise UsageError(f"--shifted: {first_line(error)}, {known}") from error
