"""What the scores of a network are judged by: the loss of every label, and a measure of all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_confusion_matrix

IGNORED: Final = 255
"""The label of a pixel that does not count."""


def on(device: torch.device, images: Tensor) -> Tensor:
    """Images where and how every model of the lab expects them."""
    return images.to(device, memory_format=torch.channels_last, non_blocking=True)


@dataclass(frozen=True)
class Task:
    """What a network is trained and tested for.

    Attributes:
        measure: The measure's name.
        losses: The loss of every label that counts, of scores (N, K, ...) and labels (N, ...).
        numbers: How many numbers ``counts`` gives.
        counts: Numbers of scores and labels whose sums over batches and processes are all that
            ``value`` needs.
        value: The measure, between 0 and 1, of such sums.
    """

    measure: str
    losses: Callable[[Tensor, Tensor], Tensor]
    numbers: int
    counts: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], float]


def _class_losses(scores: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(scores, labels, reduction="none")


def _right(scores: Tensor, labels: Tensor) -> Tensor:
    right = (scores.argmax(1) == labels).sum()
    return torch.stack((right, torch.full_like(right, len(labels))))


CLASSIFICATION: Final = Task(
    "accuracy",
    _class_losses,
    2,
    _right,
    lambda sums: float(sums[0] / sums[1]),
)
"""One label for every image: cross-entropy and accuracy."""


def segmentation(classes: int) -> Task:
    """One label for every pixel, some :data:`IGNORED`: cross-entropy and mean IoU.

    The mean of intersection over union is taken over the classes that are seen or predicted.
    """

    def losses(scores: Tensor, labels: Tensor) -> Tensor:
        every = cross_entropy(scores, labels, reduction="none", ignore_index=IGNORED)
        return every[labels != IGNORED]

    def counts(scores: Tensor, labels: Tensor) -> Tensor:
        table: Tensor = multiclass_confusion_matrix(
            scores.argmax(1), labels, classes, ignore_index=IGNORED
        )
        return table.flatten()

    def value(sums: Tensor) -> float:
        table = sums.view(classes, classes)
        both = table.diagonal()
        either = table.sum(0) + table.sum(1) - both
        return float((both / either)[either > 0].mean())

    return Task("mean IoU", losses, classes * classes, counts, value)
