"""A folder of images for every class, as torchvision's ImageFolder reads it."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from rbnorm_lab.errors import UsageError, first_line

IMAGENET_MOMENTS: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each channel of raw values from 0 to 1, on ImageNet."""
_FORMATS: Final = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What the suffixes that torchvision looks for stand for."""
_HELD_OUT_SHARE: Final = 0.2
_SPLIT_SEED: Final = 0


class Parts(NamedTuple):
    """What :func:`image_folder` finds: the fields of :class:`rbnorm_lab.data.ImageData`."""

    train: Dataset[Any]
    plain: Dataset[Any]
    test: Dataset[Any]
    classes: int


def image_folder(path: Path, side: int, *, evaluation: bool = False) -> Parts:
    """Training images with and without augmentation, test images and the number of classes.

    Args:
        path: A folder of two folders, ``train`` and ``val`` (or ``test``), each with one folder of
            images for every class; or one folder with those classes itself, of which a fixed fifth
            is then held out.
        side: Side of the square the images are cropped to.
        evaluation: Nothing is trained: a folder with ``val`` (or ``test``) alone, or with too few
            images to hold some of each class back, is tested on as a whole.

    Raises:
        UsageError: The folder has another layout.
    """
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET_MOMENTS)]
    augment = v2.Compose([v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), *finish])
    resize = v2.Compose([v2.Resize(round(side * 256 / 224)), v2.CenterCrop(side), *finish])
    parts = {name: path / name for name in ("train", "val", "test") if (path / name).is_dir()}
    held_out = parts.get("val", parts.get("test"))
    if held_out and ("train" in parts or evaluation):
        train = parts.get("train", held_out)
        known, test = folder_of(train, augment), folder_of(held_out, resize)
        _number_alike(test, known)
        return Parts(known, folder_of(train, resize), test, len(known.classes))
    for part in parts.values():
        if any(child.is_dir() for child in part.iterdir()):  # in a class are images
            lacks = "val or test" if part.name == "train" else "train"
            raise UsageError(
                f"{part} holds folders, as a part of a data set, and lacks {lacks} beside it"
            )
    return _split(folder_of(path, augment), folder_of(path, resize), evaluation)


def _number_alike(test: ImageFolder, known: ImageFolder) -> None:
    """Let the classes of one folder have the numbers of another's, of which it may lack some."""
    if odd := sorted(set(test.classes) - known.class_to_idx.keys()):
        raise UsageError(
            f"{test.root} has the class {odd[0]!r}, which the training images, that give the "
            "model its head, do not have"
        )
    test.target_transform = [known.class_to_idx[name] for name in test.classes].__getitem__


def _split(augmented: ImageFolder, plain: ImageFolder, evaluation: bool) -> Parts:
    every, classes = range(len(plain)), plain.classes
    if len(classes) < 2:
        raise UsageError(f"{plain.root} has one class, {classes[0]}, and needs at least two")
    try:
        train, test = train_test_split(
            every, test_size=_HELD_OUT_SHARE, stratify=plain.targets, random_state=_SPLIT_SEED
        )
    except ValueError as error:
        if not evaluation:
            raise UsageError(f"{plain.root} cannot be split ({first_line(error)})") from error
        train = test = every
    parts = (Subset(augmented, train), Subset(plain, train), Subset(plain, test))
    return Parts(*parts, len(classes))


def folder_of(path: Path, transform: Any = None) -> ImageFolder:
    """An ImageFolder, whose images are PIL's where nothing transforms them.

    Raises:
        UsageError: The path is no such folder.
    """
    try:
        return ImageFolder(path, transform, loader=load_image)
    except OSError as error:
        raise UsageError(
            f"{path} is no image folder, which has one folder of images for every class "
            f"({first_line(error)})"
        ) from error


def squares(files: Iterable[str | Path], side: int, *, scaled: bool = True) -> Tensor:
    """Images as bytes (N, 3, S, S), squares of this side.

    Args:
        files: The images.
        side: The side, in pixels.
        scaled: Whether others are scaled and cropped to it, or refused.

    Raises:
        UsageError: One cannot be decoded, or is refused.
    """

    def square(file: str | Path) -> Any:
        image: Image.Image = load_image(file)
        if not scaled and image.size != (side, side):
            raise UsageError(f"{file} is {image.width} x {image.height}, not {side} x {side}")
        return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(square, files)))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def load_image(file: str | Path) -> Any:
    """An image in colour; a grey one of 16 bits is scaled, which Pillow would clip.

    Raises:
        UsageError: It cannot be decoded.
    """
    if not os.path.isfile(file):  # reading a pipe would wait for ever
        raise UsageError(f"{file} is no readable image (it is no regular file)")
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return _in_eight_bits(image).convert("RGB")
    except Exception as error:  # decoders raise what they like for broken files
        raise UsageError(f"{file} is no readable image ({first_line(error)})") from error


def _in_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its values have 32 bits, mode {image.mode}, and no known range")
    return image
