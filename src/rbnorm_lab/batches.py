"""The images that a diagnosis is made of: in which order, and how many."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from rbnorm_lab.data import collate

_SEED: Final = 0


def loader_of(dataset: Dataset[Any], batch_size: int, limit: int | None) -> DataLoader[Any]:
    """Images in a random but fixed order: neighbours stand for batches."""
    order = torch.randperm(
        len(dataset),  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(_SEED),
    )
    return DataLoader(Subset(dataset, order[:limit].tolist()), batch_size, collate_fn=collate)


class Batches:
    """A loader whose batches count on a progress bar, every time it is gone through.

    Attributes:
        images: How many it gave the last time.
    """

    def __init__(self, loader: Any, on_batch: Callable[[], None]) -> None:
        self.loader, self.on_batch, self.images = loader, on_batch, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.images = 0
        for batch in self.loader:
            self.images += len(batch[0])
            yield batch
            self.on_batch()
