"""What is diagnosed: a model with its weights, the images, and which output is which class."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from rbnorm.diagnosis.passes import normalisers
from rbnorm_lab.batches import loader_of
from rbnorm_lab.checkpoints import load_model, load_weights
from rbnorm_lab.corruptions import Corrupted
from rbnorm_lab.data import ImageData, load_data
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.models import model_name, needs_rgb
from rbnorm_lab.names import (
    FOLDER,
    class_names,
    corruption,
    data_name,
    model_file,
)

_DATA: Final = "digits"
_KEPT_BYTES: Final = 2**31  # of a data set that is gone through many times


@dataclass(frozen=True)
class Request:
    """What to diagnose; the fields are the options of the command."""

    model: str
    checkpoint: Path | None
    pretrained: bool
    data: str | None
    data_root: Path | None
    shifted: str | None
    limit: int | None
    batch_size: int
    image_size: int | None
    classes: str | None
    device: str | None
    remedies: bool
    budget: float
    fine_tune: int | None

    @property
    def outputs(self) -> int | None:
        """The number that ``--classes`` is or names."""
        if self.names is not None:
            return len(self.names)
        return None if self.classes is None else int(self.classes)

    @property
    def names(self) -> list[str] | None:
        """The names of the model's outputs, if ``--classes`` is a file."""
        if self.classes is None or self.classes.isdecimal():
            return None
        return class_names(Path(self.classes))


def relabelled(name: str, dataset: Dataset[Any], names: list[str] | None) -> Dataset[Any]:
    """A folder's images, from now on with the numbers of its classes among ``names``, if there are.

    Raises:
        UsageError: It is no folder, or has a class that is not among the names.
    """
    if names is None:
        return dataset
    if not name.startswith(FOLDER):
        raise UsageError(f"--classes FILE names the classes of an image folder, not of {name}")
    source: Any = dataset
    while not isinstance(source, ImageFolder):
        source = source.dataset
    unknown = [one for one in source.classes if one not in names]
    if unknown:
        raise UsageError(f"the class {unknown[0]!r} of {name} is not among those of --classes")
    source.target_transform = [names.index(one) for one in source.classes].__getitem__
    return dataset


def load_subject(request: Request) -> tuple[ImageData, nn.Module]:
    """A model by name fits the data's classes and channels; a file's model has its own.

    Raises:
        UsageError: Something of this cannot be had, or the model has no normaliser.
    """
    spec, checkpoint, weights = request.model, request.checkpoint, request.pretrained
    model = None
    if model_file(spec):
        model = load_model(spec, checkpoint, classes=0, channels=0)
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        rgb = first is not None and first.in_channels == 3
    else:
        rgb = weights or needs_rgb(model_name(spec))
    images = load_data(
        data_name(request.data or _DATA),
        request.data_root,
        rgb=rgb,
        image_size=request.image_size,
        evaluation=request.fine_tune is None,
    )
    if model is None and weights:
        model = pretrained(model_name(spec))
    if model is None:
        outputs = request.outputs or images.classes
        model = load_model(spec, None, classes=outputs, channels=images.channels)
        if checkpoint:
            load_weights(model, checkpoint)
    try:
        normalisers(model)
    except ValueError as error:
        raise UsageError(first_line(error)) from error
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


def first_batches(request: Request, data: ImageData) -> Any:
    """The held-out images."""
    test = relabelled(data_name(request.data or _DATA), data.test, request.names)
    return kept(loader_of(test, request.batch_size, request.limit))


def shifted_batches(request: Request, data: ImageData, first: Any) -> Any:
    """The second data set: the first's images corrupted, the training images, or other data."""
    assert request.shifted is not None
    corrupted = corruption(request.shifted)
    if corrupted:
        return kept(Corrupted(first, *corrupted, mean=data.mean, std=data.std))
    if request.shifted == "train":
        return loader_of(data.train, request.batch_size, request.limit)
    name, (image, _) = data_name(request.shifted), data.test[0]
    other = load_data(
        name,
        request.data_root,
        rgb=data.channels == 3,
        image_size=image.shape[-1],
        evaluation=True,
    )
    images = relabelled(name, other.test, request.names)
    return kept(loader_of(images, request.batch_size, request.limit))


def kept(loader: DataLoader[Any] | Corrupted) -> Any:
    """The batches in memory where they fit: they are gone through many times."""
    batches: list[Any] = []
    size = 0
    for images, labels in loader:
        batches.append((images, labels))
        size += images.nbytes
        if size > _KEPT_BYTES:
            return loader
    return batches
