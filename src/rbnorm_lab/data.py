"""Images to classify: found, checked and prepared; datasets and transforms are torchvision's."""

import gzip
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
from torchvision.transforms import v2

from rbnorm_lab.camvid import CAMVID, CLASSES, mirrored, scenes
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.evaluate import CLASSIFICATION, Task, segmentation
from rbnorm_lab.imagefolder import IMAGENET_MOMENTS, folder_of, image_folder, squares
from rbnorm_lab.names import FOLDER

CIFAR10_JPEG: Final = "cifar10-jpeg"
DEBIAN_FASHION_MNIST: Final = Path("/usr/share/datasets/fashion-mnist")

_CIFAR_SIDE: Final = 32
_CIFAR10: Final = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR: Final = {
    "cifar10": (CIFAR10, _CIFAR10),
    "cifar100": (CIFAR100, ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))),
}
_FOLDER_SIDE: Final = 224
_HELD_OUT_DIGITS: Final = 500
_HELD_OUT_PARTS: Final = 6
_SPLIT_SEED: Final = 0

Labelled = tuple[Tensor, Tensor]
"""Images (N, C, H, W), and labels of images or of their pixels."""
Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel of raw values from 0 to 1."""


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


class Tensors(Dataset[Any]):
    """Images that fit into memory, indexed a whole batch at a time.

    Indexing and transforming a batch at once instead of image by image makes an epoch of small
    images several times faster.

    Args:
        images: Images (N, C, H, W).
        labels: A label for each, or for each of their pixels.
        transform: Applied to a batch of images.
        together: Then applied to the images and their labels.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        transform: Callable[[Tensor], Tensor],
        together: Callable[[Tensor, Tensor], Labelled] | None = None,
    ) -> None:
        self.tensors = images, labels
        self.transform, self.together = transform, together

    def __len__(self) -> int:
        return len(self.tensors[1])

    def __getitem__(self, index: int) -> Labelled:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> Labelled:
        """The batch of these images and labels."""
        images, labels = (tensor[indices] for tensor in self.tensors)
        images = self.transform(images)
        return self.together(images, labels) if self.together else (images, labels)


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

    Raises:
        UsageError: The data is missing or broken.
    """
    home = root or Path("data")
    if name.startswith(FOLDER):
        path = Path(name.removeprefix(FOLDER))
        parts = image_folder(path, image_size or _FOLDER_SIDE, evaluation=evaluation)
        data = ImageData(*parts, 3, *IMAGENET_MOMENTS)
    elif name == CAMVID:
        data = _camvid(home / name, image_size, held_out)
    elif name == CIFAR10_JPEG:
        data = replace(_cifar10_jpeg(home / name, image_size), folder=home / name)
    elif name in _CIFAR:
        data = _cifar(*_CIFAR[name], home, image_size)
    elif name == "fashion-mnist":
        data = _in_memory(*_fashion_mnist(root), None, image_size, rgb=rgb)
    else:
        data = _in_memory(*_digits(), None, image_size, rgb=rgb)
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


def _digits() -> tuple[Labelled, Labelled]:
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        range(len(labels)),
        test_size=_HELD_OUT_DIGITS,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    return (images[train], labels[train]), (images[test], labels[test])


def _in_memory(
    train: Labelled,
    test: Labelled,
    moments: Moments | None,
    image_size: int | None,
    *,
    rgb: bool = False,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> ImageData:
    """Images of both parts, standardised by these moments or those of grey training images."""
    if moments is None:
        values = v2.functional.to_dtype(train[0], torch.float32, scale=True)
        moments = (values.mean().item(),), (values.std().item(),)
    resize = [v2.Resize(image_size)] if image_size else []
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*moments)]
    finish += [v2.RGB()] if rgb else []
    plain = v2.Compose([*resize, *finish])
    augmented = v2.Compose([*resize, augment, *finish]) if augment else plain
    channels = 3 if rgb else train[0].shape[1]
    mean, std = (moment * (channels // len(moment)) for moment in moments)
    return ImageData(
        Tensors(*train, augmented),
        Tensors(*train, plain),
        Tensors(*test, plain),
        int(train[1].max()) + 1,
        channels,
        mean,
        std,
    )


def cropped_and_flipped(images: Tensor) -> Tensor:
    """Each image moved by up to an eighth of its side, with zeros behind it, and half mirrored."""
    count, _, height, width = images.shape
    pad = height // 8
    padded = F.pad(images, 4 * (pad,))
    rows = torch.randint(2 * pad + 1, (count, 1)) + torch.arange(height)
    columns = torch.randint(2 * pad + 1, (count, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _fashion_mnist(root: Path | None) -> tuple[Labelled, Labelled]:
    """From torchvision's folder or a flat one, of files of idx or idx.gz, which Debian has too."""
    home = root or Path("data")
    raw = home / "FashionMNIST" / "raw"
    for folder in (raw, home, *([] if root else [DEBIAN_FASHION_MNIST])):
        if any(folder.glob("*-ubyte*")):
            break
    else:
        folder = _download(FashionMNIST, home) / "FashionMNIST" / "raw"
    try:
        return _idx(folder, "train"), _idx(folder, "t10k")
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(
            f"the Fashion-MNIST files in {folder} are broken ({first_line(error)})"
        ) from error


def _idx(folder: Path, part: str) -> Labelled:
    """Images (N, 1, 28, 28) and labels, behind headers of 16 and 8 bytes."""

    def read(name: str, header: int) -> Tensor:
        path = folder / f"{part}-{name}-ubyte"
        packed = Path(f"{path}.gz")
        content = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        return torch.tensor(np.frombuffer(content, np.uint8, offset=header))

    images, labels = read("images-idx3", 16).view(-1, 1, 28, 28), read("labels-idx1", 8)
    if len(images) != len(labels):
        raise ValueError(f"{part} has {len(images)} images and {len(labels)} labels")
    return images, labels.long()


def _cifar(
    dataset: type[CIFAR10], moments: Moments, root: Path, image_size: int | None
) -> ImageData:
    if not (root / dataset.base_folder).is_dir():
        root = _download(dataset, root)
    try:
        parts = [dataset(root, train=train) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"the {dataset.__name__} files in {root} are broken ({first_line(error)})"
        ) from error
    train, test = (
        (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    data = _in_memory(train, test, moments, image_size, augment=cropped_and_flipped)
    return replace(data, classes=len(parts[0].classes))


def _cifar10_jpeg(folder: Path, image_size: int | None) -> ImageData:
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}, which is to have train/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    parts = [folder_of(folder / part) for part in ("train", "test")]
    train, test = (
        (
            squares((file for file, _ in part.samples), _CIFAR_SIDE, scaled=False),
            torch.tensor(part.targets),
        )
        for part in parts
    )
    return _in_memory(train, test, _CIFAR10, image_size, augment=cropped_and_flipped)


def _camvid(folder: Path, side: int | None, held_out: bool) -> ImageData:
    train, test = (scenes(folder, part, side) for part in ("train", "val" if held_out else "test"))
    mean, std = (torch.tensor(moment).view(3, 1, 1) for moment in IMAGENET_MOMENTS)

    def plain(images: Tensor) -> Tensor:
        return (images / 255 - mean) / std

    parts = Tensors(*train, plain, mirrored), Tensors(*train, plain), Tensors(*test, plain)
    return ImageData(*parts, CLASSES, 3, *IMAGENET_MOMENTS, segmentation(CLASSES))


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
