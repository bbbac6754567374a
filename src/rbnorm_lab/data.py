"""Images to classify: found, checked and prepared; datasets and transforms are torchvision's."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
from torchvision.datasets.utils import extract_archive
from torchvision.transforms import v2

from rbnorm_cli.names import FOLDER
from rbnorm_lab.camvid import CAMVID, CLASSES, Scenes
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.evaluate import CLASSIFICATION, Task, segmentation
from rbnorm_lab.imagefolder import image_folder
from rbnorm_lab.imagenet import IMAGENET_MOMENTS
from rbnorm_lab.jpegs import CIFAR10_JPEG, JpegImages, cropped_and_flipped

DEBIAN_FASHION_MNIST: Final = Path("/usr/share/datasets/fashion-mnist")

_CIFAR: Final = {
    "cifar10": (CIFAR10, ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    "cifar100": (CIFAR100, ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))),
}
_FOLDER_SIDE: Final = 224
_Moments = tuple[tuple[float, ...], tuple[float, ...]]
_HELD_OUT_DIGITS: Final = 500
_HELD_OUT_PARTS: Final = 6
_SPLIT_SEED: Final = 0


@dataclass(frozen=True)
class ImageData:
    """Images to train and to test on, with their labels.

    Attributes:
        train: The training images and labels.
        plain: The same, prepared as the test images are: without augmentation.
        test: The images and labels to test on.
        classes: Number of classes.
        channels: Channels of every image.
        mean: Mean of each channel; images are (raw - mean) / std, with raw values from 0 to 1.
        std: Standard deviation of each channel.
        task: What the labels are, and how scores of them are judged.
        device: Where the data sets' images are.
        folder: Where the files are, beside which corrupted images may be kept.
    """

    train: Dataset[Any]
    plain: Dataset[Any]
    test: Dataset[Any]
    classes: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: Task = CLASSIFICATION
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - as immutable as a number
    folder: Path | None = None

    @property
    def size(self) -> int:
        """Number of training images."""
        return len(self.train)  # type: ignore[arg-type]


class Tensors(TensorDataset):
    """Images that fit into memory, indexed a whole batch at a time.

    Indexing and transforming a batch at once instead of image by image makes an epoch of small
    images several times faster.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]):
        super().__init__(images, labels)
        self.transform = transform

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch of these images and labels."""
        images, labels = self[indices]
        return self.transform(images), labels


def collate(batch: Any) -> Any:
    """Leave a batch that :class:`Tensors` made as it is, and collate single images."""
    return batch if isinstance(batch, tuple) else default_collate(batch)


def first_images(dataset: Dataset[Any], count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` images and labels of a data set, as a batch."""
    images, labels = next(iter(DataLoader(dataset, batch_size=count, collate_fn=collate)))
    return images, labels


def load_data(
    name: str,
    root: Path | None = None,
    *,
    rgb: bool = False,
    limit: int | None = None,
    test_limit: int | None = None,
    image_size: int | None = None,
    held_out: bool = False,
    evaluation: bool = False,
    quiet: bool = False,
) -> ImageData:
    """Load a data set, or fail before anything is written.

    Args:
        name: Canonical name of the data.
        root: Folder that holds, or receives, the files of Fashion-MNIST and CIFAR. None looks in
            the place of Debian's package and in ``data``.
        rgb: Repeat a grey image's channel three times.
        limit: Number of training images to keep, drawn at random but always the same.
        test_limit: Number of images to test on, likewise.
        image_size: Side to resize to. None for the data's own, 224 for an image folder.
        held_out: Test on a fixed sixth of the training images, which are then not trained on; of
            CamVid, which has them, on the images for validation.
        evaluation: Nothing is trained, so that an image folder needs no training images.
        quiet: Show no progress.

    Raises:
        UsageError: The data is missing or broken.
    """
    if name.startswith(FOLDER):
        path = Path(name.removeprefix(FOLDER))
        side = image_size or _FOLDER_SIDE
        parts = image_folder(path, side, quiet=quiet, evaluation=evaluation)
        data = ImageData(*parts, 3, *IMAGENET_MOMENTS)
    elif name == CAMVID:
        data = _camvid((root or Path("data")) / name, image_size, held_out)
    elif name == CIFAR10_JPEG:
        data = _cifar10_jpeg((root or Path("data")) / name, image_size)
    elif name in _CIFAR:
        data = _cifar(*_CIFAR[name], root or Path("data"), image_size)
    elif name == "fashion-mnist":
        data = _fashion_mnist(root, rgb, image_size)
    else:
        data = _digits(rgb, image_size)
    order = torch.randperm(data.size, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    if held_out and name != CAMVID:
        first = data.size - data.size // _HELD_OUT_PARTS
        data = replace(data, test=Subset(data.plain, order[first:].tolist()))
        order = order[:first]
    if test_limit:
        data = replace(data, test=_some(data.test, test_limit))
    kept = order[:limit].tolist()
    if name == CAMVID:
        kept.sort()  # as in the video
    if len(kept) == data.size:
        return data
    return replace(data, train=Subset(data.train, kept), plain=Subset(data.plain, kept))


def _some(dataset: Any, limit: int) -> Subset[Any]:
    """That many of the images, drawn at random but always the same."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return Subset(dataset, order[:limit].tolist())


def _digits(rgb: bool, image_size: int | None) -> ImageData:
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        range(len(labels)),
        test_size=_HELD_OUT_DIGITS,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    return _in_memory((images[train], labels[train]), (images[test], labels[test]), rgb, image_size)


def _in_memory(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], rgb: bool, image_size: int | None
) -> ImageData:
    """Grey images (N, 1, H, W) of both parts, standardised by the training images' moments."""
    values = v2.functional.to_dtype(train[0], torch.float32, scale=True)
    transform = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([values.mean().item()], [values.std().item()]),
            *([v2.Resize(image_size)] if image_size else []),
            *([v2.RGB()] if rgb else []),
        ]
    )
    classes = int(train[1].max()) + 1
    dataset, channels = Tensors(*train, transform), 3 if rgb else 1
    mean, std = ((moment.item(),) * channels for moment in (values.mean(), values.std()))
    return ImageData(dataset, dataset, Tensors(*test, transform), classes, channels, mean, std)


def _fashion_mnist(root: Path | None, rgb: bool, image_size: int | None) -> ImageData:
    with _fashion_mnist_root(root) as folder:
        try:
            parts = [FashionMNIST(folder, train=train) for train in (True, False)]
        except (RuntimeError, AssertionError, TypeError, ValueError, OSError) as error:
            raise UsageError(
                f"the Fashion-MNIST files in {root or folder} are broken ({first_line(error)})"
            ) from error
    train, test = ((part.data.unsqueeze(1), part.targets) for part in parts)
    return _in_memory(train, test, rgb, image_size)


@contextlib.contextmanager
def _fashion_mnist_root(root: Path | None) -> Iterator[Path]:
    """A folder in torchvision's layout, made of one flat folder of idx or idx.gz if need be."""
    home = root or Path("data")
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "FashionMNIST", "raw")
        for folder in (
            home / "FashionMNIST" / "raw",
            home,
            *([] if root else [DEBIAN_FASHION_MNIST]),
        ):
            files = sorted(folder.glob("*-ubyte*")) if folder.is_dir() else []
            if files:
                raw.mkdir(parents=True)
                for file in files:
                    _unpack(file, raw)
                yield Path(scratch)
                return
        yield _download(FashionMNIST, home)


def _unpack(file: Path, folder: Path) -> None:
    if file.suffix != ".gz":
        (folder / file.name).symlink_to(file.resolve())
        return
    try:
        extract_archive(os.fspath(file), os.fspath(folder))
    except (OSError, EOFError) as error:
        raise UsageError(f"{file} cannot be unpacked ({first_line(error)})") from error


def _cifar(
    dataset: type[CIFAR10], moments: _Moments, root: Path, image_size: int | None
) -> ImageData:
    side = image_size or 32
    finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*moments)]
    resize = [v2.Resize(side)] if image_size else []
    augment = [v2.RandomCrop(side, padding=side // 8), v2.RandomHorizontalFlip()]
    if not (root / dataset.base_folder).is_dir():
        root = _download(dataset, root)
    augmented, plain = v2.Compose([*resize, *augment, *finish]), v2.Compose([*resize, *finish])
    try:
        train, unchanged = (dataset(root, train=True, transform=t) for t in (augmented, plain))
        test = dataset(root, train=False, transform=plain)
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"the {dataset.__name__} files in {root} are broken ({first_line(error)})"
        ) from error
    return ImageData(train, unchanged, test, len(train.classes), 3, *moments)


def _cifar10_jpeg(folder: Path, image_size: int | None) -> ImageData:
    """As :func:`_cifar`, but cropped and flipped a whole batch at a time."""
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}, which is to have train/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    moments = _CIFAR["cifar10"][1]
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*moments)]
    resize = [v2.Resize(image_size)] if image_size else []
    augmented = v2.Compose([*resize, cropped_and_flipped, *finish])
    plain = v2.Compose([*resize, *finish])
    train = JpegImages(folder / "train", augmented)
    test = JpegImages(folder / "test", plain)
    return ImageData(train, train.prepared(plain), test, train.classes, 3, *moments, folder=folder)


def _camvid(folder: Path, side: int | None, held_out: bool) -> ImageData:
    train, plain = (Scenes(folder, "train", side, flips=flips) for flips in (True, False))
    test = Scenes(folder, "val" if held_out else "test", side, flips=False)
    return ImageData(train, plain, test, CLASSES, 3, *IMAGENET_MOMENTS, segmentation(CLASSES))


def _download(dataset: Any, root: Path) -> Path:
    """Let torchvision download into ``root``, where an attempt that fails leaves nothing."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            dataset(scratch, train=True, download=True)
            shutil.copytree(scratch, root, dirs_exist_ok=True)
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"{dataset.__name__} is not in {root} and cannot be downloaded ({first_line(error)}): "
            "name a folder that has it with --data-root"
        ) from error
    return root
