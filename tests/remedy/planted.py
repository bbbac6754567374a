"""A small network that has learnt something, and data in which it errs."""

import torch
from torch import Tensor, nn

CLASSES = 4


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with one bright quarter, whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    x = torch.randn(count, 1, 8, 8, generator=generator)
    for image, label in zip(x, labels.tolist(), strict=True):
        top, left = divmod(label, 2)
        image[:, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 1.0
    return x, labels


def batches(x: Tensor, labels: Tensor, size: int = 40) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), labels.split(size), strict=True))


def network() -> nn.Sequential:
    """No padding: a constant added to the image is a constant in the first layer's input."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    )
