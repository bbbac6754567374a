"""The images that a diagnosis is made of: in which order, and how many."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from rbnorm.lab.config import FOLDER
from rbnorm.lab.corruptions import KINDS, corruption
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


def check_shifted(name: str | None) -> None:
    """Raise UsageError for what is no second data set."""
    if name is None or name == "train" or corruption(name):
        return
    try:
        canonical_name(name)
    except UsageError as error:
        others = "" if name.startswith(FOLDER) else f", {', '.join(('train', *KINDS))}"
        raise UsageError(f"--shifted: {first_line(error)}{others}") from error
