"""Loss and accuracy, of predictions and of models."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_accuracy


def on(device: torch.device, images: Tensor) -> Tensor:
    """Images where and how every model of the lab expects them."""
    return images.to(device, memory_format=torch.channels_last)


def accuracy_of(losses: Tensor, predictions: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean loss, and accuracy as a share of whole images."""
    classes = max(2, int(torch.cat((predictions, targets)).max()) + 1)
    accuracy = multiclass_accuracy(predictions, targets, classes, average="micro").item()
    # without the rounding to float32 equal differences stay equal
    return losses.double().mean().item(), round(accuracy * len(targets)) / len(targets)


@torch.no_grad()
def tested(
    model: nn.Module, loader: DataLoader[Any], accelerator: Accelerator
) -> tuple[float, float]:
    """Mean loss and accuracy of a loader's images, in evaluation mode."""
    model.eval()
    batches = []
    for images, labels in loader:
        scores = model(on(accelerator.device, images))
        loss = cross_entropy(scores, labels, reduction="none")
        batches.append(accelerator.gather_for_metrics((loss, scores.argmax(1), labels)))
    losses, predictions, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    return accuracy_of(losses, predictions, targets)
