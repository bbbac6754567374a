"""A folder of images for every class: torchvision's ImageFolder, checked before it is used."""

import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import Progress
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.imagenet import IMAGENET_MOMENTS
from rbnorm_lab.progress import terminal

_FORMATS: Final = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What the suffixes that torchvision looks for stand for."""
_CHECKED: Final = 20_000
_HELD_OUT_SHARE: Final = 0.2
_SPLIT_SEED: Final = 0


class Parts(NamedTuple):
    """What :func:`image_folder` finds: the fields of :class:`rbnorm_lab.data.ImageData`."""

    train: Dataset[Any]
    plain: Dataset[Any]
    test: Dataset[Any]
    classes: int


def image_folder(path: Path, side: int, *, quiet: bool, evaluation: bool = False) -> Parts:
    """Training images with and without augmentation, test images and the number of classes.

    Args:
        path: A folder of two folders, ``train`` and ``val`` (or ``test``), each with one folder of
            images for every class; or one folder with those classes itself, of which a fixed fifth
            is then held out.
        side: Side of the square the images are cropped to.
        quiet: Show no progress.
        evaluation: Nothing is trained: a folder with ``val`` (or ``test``) alone, or with too few
            images to hold some of each class back, is tested on as a whole.

    Raises:
        UsageError: The folder has another layout, or an image that cannot be decoded.
    """
    finish = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(*IMAGENET_MOMENTS),
    ]
    for_training = v2.Compose([v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), *finish])
    for_test = v2.Compose([v2.Resize(round(side * 256 / 224)), v2.CenterCrop(side), *finish])
    held_out = next((path / part for part in ("val", "test") if (path / part).is_dir()), None)
    if not (evaluation and held_out):
        _check_layout(path, held_out)
    train: Any
    plain: Any
    test: Any
    if held_out and (path / "train").is_dir():
        train, plain, test = (
            folder_of(path / "train", for_training),
            folder_of(path / "train", for_test),
            folder_of(held_out, for_test),
        )
        if not set(test.classes) <= set(train.classes):
            raise UsageError(
                f"{held_out} has {len(test.classes)} classes and {path / 'train'}, which gives the "
                f"model its head, has {len(train.classes)}: the classes must be the same"
            )
        # a class that only the training part has must not shift the others' numbers
        test.samples = [
            (file, train.class_to_idx[test.classes[label]]) for file, label in test.samples
        ]
        files = [file for file, _ in (*train.samples, *test.samples)]
        classes = len(train.classes)
    else:
        path = held_out if held_out and evaluation else path
        whole = folder_of(path, for_training)
        files, classes = [file for file, _ in whole.samples], len(whole.classes)
        if classes < 2:
            raise UsageError(f"{path} has one class, {whole.classes[0]}, and needs at least two")
        try:
            chosen = train_test_split(
                range(len(files)),
                test_size=_HELD_OUT_SHARE,
                stratify=whole.targets,
                random_state=_SPLIT_SEED,
            )
        except ValueError as error:
            if not evaluation:
                raise UsageError(f"{path} cannot be split ({first_line(error)})") from error
            chosen = None
        if chosen is None or path == held_out:
            chosen = [list(range(len(files)))] * 2
        unchanged = folder_of(path, for_test)
        train, plain = (Subset(folder, chosen[0]) for folder in (whole, unchanged))
        test = Subset(unchanged, chosen[1])
    _check_images(files, quiet=quiet)
    return Parts(train, plain, test, classes)


def _check_layout(path: Path, held_out: Path | None) -> None:
    """Refuse parts that would be taken for classes: what is in a class is images, not folders."""
    parts = [path / name for name in ("train", "val", "test") if (path / name).is_dir()]
    if (path / "train").is_dir() and held_out:
        return
    for part in parts:
        if any(child.is_dir() for child in part.iterdir()):
            lacks = "val or test beside it" if part.name == "train" else "train beside it"
            raise UsageError(f"{part} holds folders, as a part of a data set, and lacks {lacks}")


def folder_of(path: Path, transform: v2.Compose | None) -> Any:
    """An ImageFolder, whose images are PIL's where nothing transforms them.

    Raises:
        UsageError: The path is none.
    """
    try:
        return ImageFolder(path, transform, loader=_load)
    except OSError as error:
        raise UsageError(
            f"{path} is no image folder, which has one folder of images for every class "
            f"({first_line(error)})"
        ) from error


def squares(files: Iterable[str | Path], side: int) -> Tensor:
    """Images as bytes (N, 3, S, S), each scaled and cropped to a square of this side.

    Raises:
        UsageError: One cannot be decoded.
    """

    def square(file: str | Path) -> Any:
        image: Image.Image = _load(file)
        return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(square, files)))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _check_images(files: Sequence[str], *, quiet: bool) -> None:
    """Decode images once, so that a broken one is named before training begins.

    Beyond :data:`_CHECKED` images about as many, evenly spread: all of ImageNet would take hours.
    """
    chosen = files[:: math.ceil(len(files) / _CHECKED)]
    console = terminal(stderr=True)
    bar = Progress(transient=True, disable=quiet or not console.is_terminal, console=console)
    with ThreadPoolExecutor() as pool, bar:
        task = bar.add_task("checking images", total=len(chosen))
        for fault in pool.map(_fault, chosen):
            if fault:
                pool.shutdown(cancel_futures=True)
                raise fault
            bar.advance(task)


def _fault(file: str) -> UsageError | None:
    try:
        _load(file)
    except UsageError as error:
        return error
    return None


def _load(file: str | Path) -> Any:
    """An image in colour.

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
    """A grey image of 16 bits scaled, which Pillow would clip; others as they are."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its values have 32 bits, mode {image.mode}, and no known range")
    return image
