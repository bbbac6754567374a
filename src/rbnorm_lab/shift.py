"""Accuracy on images unlike those of training: corrupted, in several ways and severities."""

import copy
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from rbnorm_lab import corruptions
from rbnorm_lab.batches import loader_of
from rbnorm_lab.config import CLEAN, CONDITIONS, WHOLE, RunConfig
from rbnorm_lab.corruptions import Corrupted
from rbnorm_lab.data import ImageData, first_images
from rbnorm_lab.evaluate import on

TRAINED, TEST_BATCH = "trained", "test-batch"
"""The statistics a model is tested with: the running ones of training, and those of each batch of
test images."""
OTHERS: Final = {
    "controls": {TEST_BATCH: 250},
    "whole-controls": {"test-batch-64": 64, "test-batch-8": 8},
}
"""Those that some of :data:`rbnorm_lab.config.SHIFTS` ask for, too, and the images of a batch."""

IMAGES: Final = 2000
"""Fixed test images, where not all are tested."""
_BATCH: Final = 250
_KEPT_BYTES: Final = 2**29


def shifted_accuracy(
    model: nn.Module, config: RunConfig, data: ImageData, device: torch.device
) -> dict[str, dict[str, float]]:
    """Accuracy on test images under every kind and severity of corruption that a run asks for.

    They are 2,000 fixed images, or all of them.

    Args:
        model: A trained model; its parameters and statistics are not changed.
        config: Its run, whose ``shift`` says with which statistics it is tested; those other than
            of training only if the model has layers with batch statistics.
        data: What it was trained on.
        device: Where it is.

    Returns:
        For each of these statistics the accuracy under each of ``config.tested_on()``.
    """
    models = {TRAINED: (model.eval(), _BATCH)}
    limit = None if config.shift in WHOLE else IMAGES
    if any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        for name, size in OTHERS.get(config.shift, {}).items():
            models[name] = _by_batch(model), size
    found: dict[str, dict[str, float]] = {statistics: {} for statistics in models}
    for condition in config.tested_on():
        batches = _batches(data, condition, limit)
        for statistics, (candidate, size) in models.items():
            found[statistics][condition] = accuracy(candidate, batches, size, device)
    return found


def mean_corruption_accuracy(accuracies: dict[str, float]) -> float:
    """The mean over all kinds and severities of one entry of :func:`shifted_accuracy`."""
    corrupted = [value for condition, value in accuracies.items() if condition != CLEAN]
    return sum(corrupted) / len(corrupted)


def _by_batch(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in model.modules():
        layer.training = isinstance(layer, _BatchNorm)
    return model


@torch.no_grad()
def accuracy(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    size: int,
    device: torch.device,
) -> float:
    """Share of images that are classified correctly.

    Args:
        forward: From images to scores.
        batches: Images and labels.
        size: Images of a batch, into which these are cut.
        device: Where ``forward`` expects them.
    """
    right, total = torch.zeros((), dtype=torch.int64, device=device), 0
    for batch in batches:
        for images, labels in zip(*(part.split(size) for part in batch), strict=True):
            right += (forward(on(device, images)).argmax(1) == labels.to(device)).sum()
            total += len(labels)
    return int(right) / max(total, 1)


def _batches(data: ImageData, condition: str, limit: int | None) -> Iterable[tuple[Tensor, Tensor]]:
    image, _ = first_images(data.test, 1)
    count = limit or len(data.test)  # type: ignore[arg-type]
    if data.folder and limit is None:
        return [_stored(data, condition, data.folder)]
    fits = image.nbytes * count * len(CONDITIONS) <= _KEPT_BYTES
    return (_kept if fits else _corrupted)(data, condition, limit)


@lru_cache(maxsize=len(CONDITIONS))  # small images are corrupted once for all runs
def _kept(data: ImageData, condition: str, limit: int | None) -> list[tuple[Tensor, Tensor]]:
    return list(_corrupted(data, condition, limit))


def _corrupted(
    data: ImageData, condition: str, limit: int | None
) -> Iterable[tuple[Tensor, Tensor]]:
    clean: DataLoader[Any] = loader_of(data.test, _BATCH, limit)
    if condition == CLEAN:
        return clean
    kind, severity = condition.split("/")
    return Corrupted(clean, kind, int(severity), mean=data.mean, std=data.std)


@lru_cache(maxsize=1)
def _clean(data: ImageData) -> tuple[Tensor, Tensor, str]:
    """All test images and labels in one batch, and a name for what becomes of them."""
    images, labels = map(torch.cat, zip(*_corrupted(data, CLEAN, None), strict=True))
    source = Path(corruptions.__file__).read_bytes()
    return images, labels, hashlib.sha256(source + images.numpy().tobytes()).hexdigest()[:16]


def _stored(data: ImageData, condition: str, folder: Path) -> tuple[Tensor, Tensor]:
    """All corrupted images in one batch, from a file that is written when it is missing.

    Processes that test side by side share the file's memory.
    """
    clean, labels, name = _clean(data)
    if condition == CLEAN:
        return clean, labels
    path = folder.with_name(f"{folder.name}-corrupted") / name / condition.replace("/", "-")
    if not path.is_file():
        images = torch.cat([images for images, _ in _corrupted(data, condition, None)])
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(images.numpy().tobytes())
        os.replace(file.name, path)
    shape, count = clean.shape, clean.numel()
    stored = torch.from_file(str(path), shared=False, size=count, dtype=clean.dtype)
    return stored.view(shape), labels
