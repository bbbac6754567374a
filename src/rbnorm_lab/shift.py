"""Accuracy on images unlike those of training: corrupted, in several ways and severities."""

import copy
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from rbnorm.diagnosis import recalibrate
from rbnorm_lab.batches import loader_of
from rbnorm_lab.config import CLEAN, CONDITIONS
from rbnorm_lab.corruptions import Corrupted
from rbnorm_lab.data import ImageData, first_images
from rbnorm_lab.evaluate import on

TRAINED, RE_ESTIMATED, TEST_BATCH = STATISTICS = ("trained", "re-estimated", "test-batch")
"""The statistics a model is tested with: the running ones of training, those of clean training
images after training, and those of each batch of test images."""

_IMAGES: Final = 2000
_BATCH: Final = 250
_KEPT_BYTES: Final = 2**29


def shifted_accuracy(
    model: nn.Module, data: ImageData, device: torch.device, *, controls: bool
) -> dict[str, dict[str, float]]:
    """Accuracy on 2,000 fixed test images under every kind and severity of corruption.

    Test batches have 250 images. Statistics are re-estimated on 2,000 fixed training images.

    Args:
        model: A trained model; its parameters and statistics are not changed.
        data: What it was trained on.
        device: Where it is.
        controls: Test with all :data:`STATISTICS`, if the model has layers with batch statistics.

    Returns:
        For each of these statistics the accuracy under each of :data:`CONDITIONS`.
    """
    models = {TRAINED: model.eval()}
    if controls and any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        models[RE_ESTIMATED] = _re_estimated(model, data, device)
        models[TEST_BATCH] = _by_batch(model)
    found: dict[str, dict[str, float]] = {statistics: {} for statistics in models}
    for condition in CONDITIONS:
        batches = _batches(data, condition)
        for statistics, candidate in models.items():
            found[statistics][condition] = _accuracy(candidate, batches, device)
    return found


def mean_corruption_accuracy(accuracies: dict[str, float]) -> float:
    """The mean over all kinds and severities of one entry of :func:`shifted_accuracy`."""
    return sum(accuracies[condition] for condition in CONDITIONS[1:]) / len(CONDITIONS[1:])


def _re_estimated(model: nn.Module, data: ImageData, device: torch.device) -> nn.Module:
    loader = loader_of(data.plain, _BATCH, _IMAGES)
    return recalibrate(copy.deepcopy(model), (on(device, images) for images, _ in loader))


def _by_batch(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in model.modules():
        layer.training = isinstance(layer, _BatchNorm)
    return model


@torch.no_grad()
def _accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> float:
    right = total = 0
    for images, labels in batches:
        right += int((model(on(device, images)).argmax(1).cpu() == labels).sum())
        total += len(labels)
    return right / total


def _batches(data: ImageData, condition: str) -> Iterable[tuple[Tensor, Tensor]]:
    image, _ = first_images(data.test, 1)
    size = image.nbytes * _IMAGES * len(CONDITIONS)
    return _kept(data, condition) if size <= _KEPT_BYTES else _corrupted(data, condition)


@lru_cache(maxsize=len(CONDITIONS))  # small images are corrupted once for all runs
def _kept(data: ImageData, condition: str) -> list[tuple[Tensor, Tensor]]:
    return list(_corrupted(data, condition))


def _corrupted(data: ImageData, condition: str) -> Iterable[tuple[Tensor, Tensor]]:
    clean: DataLoader[Any] = loader_of(data.test, _BATCH, _IMAGES)
    if condition == CLEAN:
        return clean
    kind, severity = condition.split("/")
    return Corrupted(clean, kind, int(severity), mean=data.mean, std=data.std)
