import gzip
import os
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST

from rbnorm_lab import data
from rbnorm_lab.data import collate, cropped_and_flipped, load_data
from rbnorm_lab.errors import UsageError
from rbnorm_lab.imagefolder import load_image


def everything(dataset, batch_size=7):
    images, labels = zip(*DataLoader(dataset, batch_size, collate_fn=collate), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_digits_are_split_once_and_for_all():
    first, again = load_data("digits"), load_data("digits")
    assert (first.size, len(first.test), first.classes, first.channels) == (1297, 500, 10, 1)
    for part in ("train", "test"):
        a, b = (everything(getattr(d, part)) for d in (first, again))
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    counts = torch.bincount(everything(first.test)[1])
    assert counts.min() >= 48
    assert counts.max() <= 51


def test_digits_are_standardised_by_the_training_images():
    data = load_data("digits")
    images, _ = everything(data.train)
    assert images.shape[1:] == (1, 8, 8)
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-5)
    raw = everything(data.test)[0] * data.std[0] + data.mean[0]
    torch.testing.assert_close(raw, data.test.tensors[0], rtol=0, atol=1e-6)


def test_a_batch_is_its_images_one_by_one():
    dataset = load_data("digits").train
    images, labels = dataset.__getitems__([5, 3])
    for position, index in enumerate([5, 3]):
        one, label = dataset.__getitems__([index])
        assert torch.equal(images[position], one[0])
        assert labels[position] == label[0]


def test_rgb_repeats_the_channel():
    grey, rgb = load_data("digits"), load_data("digits", rgb=True)
    images = everything(rgb.test)[0]
    assert rgb.channels == 3
    assert torch.equal(images, everything(grey.test)[0].expand_as(images))
    assert (rgb.mean, rgb.std) == (3 * grey.mean, 3 * grey.std)


def test_limits_keep_the_same_images_every_time_and_image_size_resizes():
    limited = [load_data("digits", limit=50, test_limit=20, image_size=12) for _ in range(2)]
    assert [(d.size, len(d.test)) for d in limited] == [(50, 20), (50, 20)]
    for part in ("train", "test"):
        assert torch.equal(*(everything(getattr(d, part))[0] for d in limited))
    assert limited[0].test[0][0].shape == (1, 12, 12)
    assert len(load_data("digits", limit=50).test) == 500


def idx(values):
    shape = struct.pack(f">{values.ndim}I", *values.shape)
    return b"\x00\x00\x08" + bytes([values.ndim]) + shape + bytes(values.flatten().tolist())


@pytest.fixture
def fashion():
    """12 training and 4 test images of 28 x 28 as idx files, by file name."""
    torch.manual_seed(0)
    files = {}
    for part, count in (("train", 12), ("t10k", 4)):
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx((torch.arange(count) % 4).to(torch.uint8))
    return files


def assert_fashion(loaded, fashion):
    assert (loaded.size, len(loaded.test), loaded.classes, loaded.channels) == (12, 4, 4, 1)
    raw = torch.frombuffer(bytearray(fashion["t10k-images-idx3-ubyte"][16:]), dtype=torch.uint8)
    known = torch.frombuffer(bytearray(fashion["train-images-idx3-ubyte"][16:]), dtype=torch.uint8)
    known = known.float() / 255
    expected = (raw.float() / 255 - known.mean()) / known.std()
    images, labels = everything(loaded.test)
    torch.testing.assert_close(images.flatten(), expected, rtol=1e-5, atol=1e-5)
    assert labels.tolist() == [0, 1, 2, 3]


def test_fashion_mnist_in_torchvisions_layout(tmp_path, fashion):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in fashion.items():
        (raw / name).write_bytes(content)
    assert_fashion(load_data("fashion-mnist", tmp_path), fashion)


def test_fashion_mnist_in_debians_layout(tmp_path, fashion, monkeypatch):
    for name, content in fashion.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    assert_fashion(load_data("fashion-mnist", tmp_path), fashion)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path)
    assert_fashion(load_data("fashion-mnist"), fashion)
    cut = tmp_path / "train-images-idx3-ubyte.gz"
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(UsageError, match=r"the Fashion-MNIST files in .* are broken"):
        load_data("fashion-mnist", tmp_path)


def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def unreachable(self):
        (tmp_path / "started").touch()
        raise RuntimeError("Error downloading train-images\nsecond line")

    monkeypatch.setattr(FashionMNIST, "download", unreachable)
    with pytest.raises(
        UsageError, match=r"cannot be downloaded \(Error downloading train-images\)"
    ):
        load_data("fashion-mnist", tmp_path / "root")
    assert (tmp_path / "started").exists()
    assert not (tmp_path / "root").exists()


def test_one_folder_is_split_by_class(image_folder):
    loaded = load_data(f"imagefolder:{image_folder}", image_size=16)
    assert (loaded.size, len(loaded.test), loaded.classes, loaded.channels) == (16, 4, 2, 3)
    images, labels = everything(loaded.test)
    assert sorted(labels.tolist()) == [0, 0, 1, 1]
    assert images[labels == 0].mean() < 0 < images[labels == 1].mean()
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (loaded.mean, loaded.std))
    levels = ((images * std + mean) * 255).flatten(1)
    for label, darkest in ((0, 40), (1, 200)):
        own = levels[labels == label]
        assert own.min().item() >= darkest - 1e-3
        assert own.max().item() <= darkest + 49 + 1e-3


def test_folders_of_both_parts_are_used_as_they_are(image_folder):
    root = image_folder.parent / "parts"
    shutil.copytree(image_folder, root / "train")
    shutil.copytree(image_folder / "light", root / "val" / "light")
    loaded = load_data(f"imagefolder:{root}", image_size=16)
    assert (loaded.size, len(loaded.test), loaded.classes) == (20, 10, 2)
    assert everything(loaded.test)[1].tolist() == [1] * 10  # the number it has in train


def test_a_grey_image_of_16_bits_is_scaled(tmp_path):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "0.png")
    image = load_image(tmp_path / "0.png")
    assert image.mode == "RGB"
    expected = np.round(values / 257)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(np.asarray(image), expected)


def cut_short(path):
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-600])


def text(path):
    path.write_bytes(b"no image")


def pipe(path):
    os.mkfifo(path)


def thirty_two_bits(path):
    Image.fromarray(np.ones((16, 16), dtype=np.int32)).save(path, format="TIFF")


def other_format(path):  # by its content
    Image.new("RGB", (16, 16)).save(path, format="DDS")


def bomb(path):
    """A few bytes that say they are 10 thousand million pixels."""
    Image.new("1", (1, 1)).save(path, format="PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


@pytest.mark.parametrize("make", [cut_short, text, pipe, thirty_two_bits, other_format, bomb])
def test_what_is_no_image_of_eight_or_sixteen_bits_is_named(image_folder, make):
    path = image_folder / "light" / "3.png"
    path.unlink()
    make(path)
    with pytest.raises(UsageError, match=r"light/3\.png is no readable image"):
        [image for image, _ in data.folder_of(image_folder)]


def test_a_decoder_that_raises_anything_ends_in_a_sentence(image_folder, monkeypatch):
    def broken(*_, **__):
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(UsageError, match=r"is no readable image \(unpack requires a buffer"):
        load_image(image_folder / "light" / "3.png")


def test_an_image_folder_to_test_on_needs_no_training_images(image_folder):
    shutil.copytree(image_folder, image_folder.parent / "parts" / "val")
    name = f"imagefolder:{image_folder.parent / 'parts'}"
    assert len(load_data(name, evaluation=True).test) == 20


REFUSED = {  # what is copied from where, and what is said of the whole
    "train has no val": ({"train": "."}, "train holds folders, as a part of a data set, and lacks"),
    "val has no train": ({"val": "."}, "val holds folders, as a part of a data set, and lacks tr"),
    "test has no train": ({"test": "."}, "test holds folders, as a part of a data set, and lacks"),
    "one class": ({"dark": "dark"}, "has one class, dark, and needs at least two"),
    "no classes": ({}, "is no image folder"),
    "a class that nothing trains on": (
        {"train/light": "light", "val": "."},
        "val has the class 'dark', which the training images",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_folder_of_another_layout_is_refused(image_folder, tmp_path, why):
    copies, message = REFUSED[why]
    (tmp_path / "whole").mkdir()
    for target, source in copies.items():
        shutil.copytree(image_folder / source, tmp_path / "whole" / target)
    with pytest.raises(UsageError, match=message):
        load_data(f"imagefolder:{tmp_path / 'whole'}")


CIFAR = {
    "cifar100": ("cifar-100-python", ("train",), "test", "fine_label", "meta"),
    "cifar10": (
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)],
        "test_batch",
        "label",
        "batches.meta",
    ),
}


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_from_torchvisions_layout(tmp_path, monkeypatch, name):
    folder, train, test, word, meta = CIFAR[name]
    files = {file: label for label, file in enumerate([*train, test])}
    pixels = torch.randint(256, (len(files), 3072), generator=torch.Generator().manual_seed(0))
    (tmp_path / folder).mkdir()
    for file, label in files.items():
        content = {"data": pixels[label].byte().numpy()[None], f"{word}s": [label]}
        (tmp_path / folder / file).write_bytes(pickle.dumps(content))
    names = {f"{word}_names": [f"class {i}" for i in range(int(name.removeprefix("cifar")))]}
    (tmp_path / folder / meta).write_bytes(pickle.dumps(names))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    loaded = load_data(name, tmp_path)
    assert f"cifar{loaded.classes}" == name
    assert (loaded.size, len(loaded.test), loaded.channels) == (len(train), 1, 3)
    assert everything(loaded.plain)[1].tolist() == list(range(len(train)))
    image, label = loaded.test[0]
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (loaded.mean, loaded.std))
    expected = pixels[-1].view(3, 32, 32) / 255
    assert torch.allclose(image * std + mean, expected, rtol=0, atol=1e-6)
    assert label == len(train)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", "the CIFAR10 files in .* are broken"),
        ("cifar10-jpeg", "train/CLASS/IMAGE"),
    ],
)
def test_cifar10_without_its_files_is_refused(tmp_path, name, message):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UsageError, match=message):
        load_data(name, tmp_path)


def test_held_out_images_are_those_that_no_limit_trains_on():
    data = load_data("digits")
    tuning = load_data("digits", held_out=True)
    part, whole = everything(tuning.test)[0], everything(data.train)[0]
    assert len(part) == len(whole) // 6
    trained = everything(tuning.train)[0]
    assert len(trained) + len(part) == len(whole)

    def distinct(images):
        return {image.numpy().tobytes() for image in images}

    assert not distinct(part) & distinct(trained)
    assert distinct(part) | distinct(trained) == distinct(whole)
    limited = load_data("digits", held_out=True, limit=100)
    assert torch.equal(everything(limited.test)[0], part)
    assert torch.equal(
        everything(limited.train)[0], everything(load_data("digits", limit=100).train)[0]
    )


def test_plain_training_images_are_the_training_images_without_augmentation(image_folder):
    data = load_data(f"imagefolder:{image_folder}", image_size=16, limit=5)
    again = load_data(f"imagefolder:{image_folder}", image_size=16, limit=5)
    assert torch.equal(data.plain[0][0], again.plain[0][0])
    assert data.plain[0][1] == data.train[0][1]
    assert not torch.equal(data.train[0][0], data.train[0][0])


@pytest.fixture
def jpegs(tmp_path):
    """Four training images and three test images of two classes, in which every image differs."""
    for part, count in (("train", 4), ("test", 3)):
        for i in range(count):
            folder = tmp_path / "cifar10-jpeg" / part / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            shades = np.full((32, 32, 3), 40 * i + 20, np.uint8)
            shades[:, :16] += 10
            Image.fromarray(shades).save(folder / f"{i}.jpg", quality=100)
    return tmp_path


def test_cifar10_as_jpeg_is_read_in_the_order_of_its_classes(jpegs):
    loaded = load_data("cifar10-jpeg", jpegs)
    assert (loaded.size, len(loaded.test), loaded.classes, loaded.channels) == (4, 3, 2, 3)
    images, labels = everything(loaded.plain)
    assert labels.tolist() == [0, 0, 1, 1]
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (loaded.mean, loaded.std))
    raw = 255 * (images * std + mean)
    assert raw[:, 0, 5, 20].round().tolist() == pytest.approx([20, 100, 60, 140], abs=2)


def test_augmentation_moves_each_image_by_itself(jpegs):
    dataset = load_data("cifar10-jpeg", jpegs).train
    torch.manual_seed(0)
    images, _ = dataset.__getitems__([0] * 64)
    assert len(images.flatten(1).unique(dim=0)) > 32


@pytest.mark.parametrize("seed", range(3))
def test_a_moved_image_is_a_part_of_the_padded_one(seed):
    image = torch.arange(1.0, 3 * 16 * 16 + 1).view(1, 3, 16, 16)
    torch.manual_seed(seed)
    moved = cropped_and_flipped(image)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    parts = [
        part
        for whole in (padded, padded.flip(3))
        for part in whole.unfold(2, 16, 1).unfold(3, 16, 1).flatten(2, 3).unbind(2)
    ]
    assert sum(torch.equal(moved, part) for part in parts) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Image.new("RGB", (16, 32)).save, "is 16 x 32, not 32 x 32"),
        (text, "is no readable image"),
    ],
)
def test_a_jpeg_that_does_not_fit_is_named(jpegs, make, message):
    make(jpegs / "cifar10-jpeg" / "test" / "a" / "0.jpg")
    with pytest.raises(UsageError, match=rf"0\.jpg {message}"):
        load_data("cifar10-jpeg", jpegs)
