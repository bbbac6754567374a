"""Which images a step sees, in which process and how augmented: functions of the seed and step."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from rbnorm.lab.data import ImageData, collate
from rbnorm.lab.errors import UsageError
from rbnorm.lab.training.recipe import Recipe, derive

_ORDER: Final = 0
_AUGMENTATION: Final = 1


class Draw(NamedTuple):
    """One batch to load: the images, and the seed of their random augmentation."""

    indices: list[int]
    seed: int


class Order(Sampler[Draw]):
    """The batches of one process from one step on to another.

    Every epoch shuffles all images and leaves out those that fill no whole step. A step's images
    are dealt to its forward passes, and those of a pass to the processes.

    Args:
        recipe: The run.
        images: Number of training images.
        rank: This process.
        steps: The optimiser steps, counted from the run's first.
    """

    def __init__(self, recipe: Recipe, images: int, rank: int, steps: range) -> None:
        self.recipe, self.images, self.rank, self.steps = recipe, images, rank, steps

    def __iter__(self) -> Iterator[Draw]:
        run, share = self.recipe.run, self.recipe.share
        per_epoch = self.images // run.batch_size
        epoch = -1
        for step in self.steps:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                generator = torch.Generator().manual_seed(derive(run.seed, _ORDER, epoch))
                order = torch.randperm(self.images, generator=generator)
            start = step % per_epoch * run.batch_size
            for i in range(self.recipe.accumulate):
                place = i * run.processes + self.rank
                own = order[start + place * share : start + (place + 1) * share]
                yield Draw(own.tolist(), derive(run.seed, _AUGMENTATION, step, place))


class Augmented(Dataset[Any]):
    """A data set whose random augmentation depends on the draw alone, not on what came before."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset: Any = dataset

    def __getitem__(self, draw: Draw) -> Any:
        """The batch of a draw, or its images one by one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.seed)
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(draw.indices)
            return [self.dataset[index] for index in draw.indices]


def training_batches(
    recipe: Recipe, data: ImageData, rank: int, steps: range, device: torch.device
) -> DataLoader[Any]:
    """The images and labels of one process, for one forward pass after another."""
    return DataLoader(
        Augmented(data.train),
        batch_size=None,  # a draw is a batch
        sampler=Order(recipe, data.size, rank, steps),
        collate_fn=collate,
        num_workers=recipe.run.workers,
        pin_memory=device.type == "cuda",
    )


def loaded(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader.

    Raises:
        UsageError: An image cannot be decoded.
    """
    try:
        yield from loader
    except UsageError as error:  # a worker's comes below the stack of its calls
        raise UsageError(str(error).splitlines()[-1].rpartition("UsageError: ")[2]) from error
