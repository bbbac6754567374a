"""Which images a step sees, in which process and how augmented: functions of the seed and step."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from rbnorm_lab.config import RunConfig
from rbnorm_lab.data import ImageData, collate, first_images
from rbnorm_lab.errors import UsageError, first_line

AUGMENTATION, STEP = range(2)
"""Streams of random numbers, beside that of the order."""
Batch = tuple[Tensor, Tensor]
"""Images and their labels."""
_TEST_IMAGES: Final = 250
_TEST_PIXELS: Final = _TEST_IMAGES * 96 * 96


def derive(seed: int, *place: int) -> int:
    """A seed for one place in a run: statistically independent of those of all other places."""
    return int(np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64)[0])


class Draw(NamedTuple):
    """One batch to load: the images, and the seed of their random augmentation."""

    indices: list[int]
    seed: int


class Order(Sampler[Draw]):
    """The batches of one process from one step on to another.

    Every epoch shuffles all images, or takes them in their order where the config says so, and
    leaves out those that fill no whole step; each process has an equal part of a step's images. The
    shuffled order is that of a ``DataLoader`` which shuffles with a generator of the run's seed,
    draw by draw.

    Args:
        config: The run.
        images: Number of training images.
        rank: This process.
        steps: The optimiser steps, counted from the run's first.
    """

    def __init__(self, config: RunConfig, images: int, rank: int, steps: range) -> None:
        self.config, self.images, self.rank, self.steps = config, images, rank, steps

    def __iter__(self) -> Iterator[Draw]:
        config, share = self.config, self.config.share
        per_epoch = self.images // config.batch_size
        generator = torch.Generator().manual_seed(config.seed)
        epoch = -1
        for step in self.steps:
            while epoch < step // per_epoch:
                epoch += 1
                # a DataLoader draws a seed for its workers before the order, and an order more
                torch.empty((), dtype=torch.int64).random_(generator=generator)
                order = torch.randperm(self.images, generator=generator)
                torch.randperm(self.images, generator=generator)
                if config.in_order:
                    order = torch.arange(self.images)
            start = step % per_epoch * config.batch_size + self.rank * share
            seed = derive(config.seed, AUGMENTATION, step, self.rank)
            yield Draw(order[start : start + share].tolist(), seed)


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
    config: RunConfig, data: ImageData, rank: int, steps: range, device: torch.device
) -> Iterator[list[Batch]]:
    """The batches of one process, step by step, each cut into what is normalised together."""
    order = Order(config, data.size, rank, steps)
    draws = Augmented(data.train)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(steps.start):
        _order_of_parts(config, generator)
    loader = _loader(draws, config, data, device, batch_size=None, sampler=order)
    for images, labels in loaded(loader):
        yield parts_of(images, labels, config, generator)


def parts_of(
    images: Tensor, labels: Tensor, config: RunConfig, generator: torch.Generator
) -> list[Batch]:
    """A batch cut into what is normalised together; sorted parts come in a random order.

    Otherwise the last classes would weigh most in the running statistics.
    """
    size = config.norm_batch or len(images)
    if not config.sorted_batches:
        return list(zip(images.split(size), labels.split(size), strict=True))
    parts = labels.argsort(stable=True).split(size)
    chosen = [parts[i] for i in _order_of_parts(config, generator)]
    return [(images[part], labels[part]) for part in chosen]


def _order_of_parts(config: RunConfig, generator: torch.Generator) -> list[int]:
    if not config.sorted_batches:
        return []
    count = config.share // (config.norm_batch or config.share)
    return torch.randperm(count, generator=generator).tolist()


def held_out(
    config: RunConfig, data: ImageData, rank: int, device: torch.device
) -> DataLoader[Any]:
    """One process's share of the test images, each image in one process."""
    images, _ = first_images(data.test, 1)
    size = min(_TEST_IMAGES, max(1, _TEST_PIXELS // images[0, 0].numel()))
    own = range(rank, len(data.test), config.processes)  # type: ignore[arg-type]
    return _loader(Subset(data.test, own), config, data, device, batch_size=size)


def _loader(
    dataset: Dataset[Any], config: RunConfig, data: ImageData, device: torch.device, **how: Any
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        collate_fn=collate,
        num_workers=config.workers,
        pin_memory=device.type == "cuda" and data.device.type == "cpu",
        **how,
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
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UsageError(
            f"a process that loads images has ended ({first_line(error)}): the same command again "
            "continues, and fewer --workers need less memory"
        ) from error
