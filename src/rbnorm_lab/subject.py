"""What is diagnosed: a model with its weights, the images, and which output is which class."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from rbnorm.diagnosis.passes import normalisers
from rbnorm_cli.names import (
    FOLDER,
    check_weights,
    corruption,
    data_name,
    model_file,
    model_name,
)
from rbnorm_lab.batches import loader_of
from rbnorm_lab.checkpoints import load_model, load_weights
from rbnorm_lab.corruptions import Corrupted
from rbnorm_lab.data import ImageData, load_data
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.models import needs_rgb

_KEPT_BYTES: Final = 2**31  # of a data set that is gone through many times


@dataclass(frozen=True)
class Weights:
    """Where a model by name has its weights from: one of the three, or a file's own.

    Attributes:
        checkpoint: A state dict.
        pretrained: Those of torchvision or timm.
        random: None: the network as it is initialised.
    """

    checkpoint: Path | None
    pretrained: bool
    random: bool


class Relabelled(Dataset[Any]):
    """A data set whose labels are numbers of a model's outputs."""

    def __init__(self, images: Any, labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return image, self.labels[int(label)]


def relabelled(name: str, dataset: Dataset[Any], names: list[str]) -> Dataset[Any]:
    """A folder's images with the numbers that its classes have among ``names``.

    Raises:
        UsageError: It is no folder, or has a class that is not among the names.
    """
    if not name.startswith(FOLDER):
        raise UsageError(f"--classes FILE names the classes of an image folder, not of {name}")
    source: Any = dataset
    while not isinstance(source, ImageFolder):
        source = source.dataset
    unknown = [one for one in source.classes if one not in names]
    if unknown:
        raise UsageError(f"the class {unknown[0]!r} of {name} is not among those of --classes")
    return Relabelled(dataset, [names.index(one) for one in source.classes])


def load_subject(
    spec: str,
    weights: Weights,
    data: str | None,
    root: Path | None,
    image_size: int | None,
    classes: int | None,
    *,
    evaluation: bool,
) -> tuple[ImageData, nn.Module]:
    """A model by name fits the data's classes and channels; a file's model has its own.

    Args:
        spec: A name, or a model's file.
        weights: Where a named model's weights are from.
        data: The data; None for digits.
        root: Folder of Fashion-MNIST and CIFAR.
        image_size: Side of the images.
        classes: Outputs of a named model; None for the data's classes.
        evaluation: Nothing is trained: an image folder needs no training images.

    Raises:
        UsageError: Something of this cannot be had.
    """
    check_weights(
        spec,
        checkpoint=weights.checkpoint is not None,
        pretrained=weights.pretrained,
        random=weights.random,
    )
    model, rgb = None, weights.pretrained
    if model_file(spec):
        model = load_model(spec, weights.checkpoint, classes=0, channels=0)
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        rgb = first is not None and first.in_channels == 3
    else:
        rgb = rgb or needs_rgb(model_name(spec))
    images = load_data(
        data_name(data or "digits"), root, rgb=rgb, image_size=image_size, evaluation=evaluation
    )
    if model is None and weights.pretrained:
        model = pretrained(model_name(spec))
    if model is None:
        outputs = classes or images.classes
        model = load_model(spec, None, classes=outputs, channels=images.channels)
        if weights.checkpoint:
            load_weights(model, weights.checkpoint)
    return images, model


def pretrained(name: str) -> nn.Module:
    """A network with the weights that torchvision or timm has, here or to download.

    Raises:
        UsageError: There are none, or they cannot be had.
    """
    library, _, bare = name.rpartition(":")
    try:
        if library == "torchvision":
            model: nn.Module = torchvision.models.get_model(bare, weights="DEFAULT")
        else:
            import timm  # noqa: PLC0415 - takes seconds to import

            model = timm.create_model(bare, pretrained=True)
    except Exception as error:  # downloads fail in many ways
        raise UsageError(
            f"the weights of {name} cannot be had ({first_line(error)}): download them elsewhere "
            "and name their file with --checkpoint"
        ) from error
    return model


def placed(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on a device.

    Raises:
        UsageError: It has no normaliser.
    """
    try:
        normalisers(model)
    except ValueError as error:
        raise UsageError(first_line(error)) from error
    return model.to(device)


def shifted_batches(
    name: str,
    data: ImageData,
    loader: Any,
    root: Path | None,
    limit: int | None,
    batch_size: int,
    names: list[str] | None,
) -> Any:
    """The second data set: corrupted images, the training images, or other data."""
    corrupted = corruption(name)
    if corrupted:
        return Corrupted(loader, *corrupted, mean=data.mean, std=data.std)
    if name == "train":
        return loader_of(data.train, batch_size, limit)
    first, _ = data.test[0]
    other = load_data(
        data_name(name), root, rgb=data.channels == 3, image_size=first.shape[-1], evaluation=True
    )
    images = relabelled(data_name(name), other.test, names) if names else other.test
    return loader_of(images, batch_size, limit)


def kept(loader: DataLoader[Any]) -> Any:
    """The batches in memory where they fit: they are gone through many times."""
    batches: list[Any] = []
    size = 0
    for images, labels in loader:
        batches.append((images, labels))
        size += images.nbytes
        if size > _KEPT_BYTES:
            return loader
    return batches
