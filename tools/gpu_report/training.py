"""A real training with BatchNorm and with RBN, seeds in pairs, on CIFAR-10 where it is given."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.io import decode_jpeg

import rbnorm
from tools.gpu_report.options import Options, Row

NAME, SECONDS, WORKERS = "training", 70, 1
DATA = "RBNORM_GPU_REPORT_DATA"
"""The environment variable that names a tar.gz of train/CLASS/*.jpg and test/CLASS/*.jpg."""

Split = tuple[Tensor, Tensor]
_loaded: dict[str, Split] = {}


def cases(options: Options) -> list[int]:
    """Seeds, each with both norms."""
    return list(range(3 if options.cuda else 1))


def run(case: int, options: Options) -> Iterator[Row]:
    """Test accuracy after the last epoch, and how long an epoch took."""
    if not _loaded:
        _load(options)
    for norm in ("batchnorm", "rbn"):
        accuracy, seconds = _train(norm, case, options)
        yield {"subject": norm, "seed": case, "accuracy": accuracy, "epoch_s": seconds}


def _load(options: Options) -> None:
    """Images (N, 3, side, side), standardised, and labels, on the device."""
    if DATA in os.environ:
        names: dict[str, int] = {}
        files: dict[str, list[Tensor]] = {"train": [], "test": []}
        labels: dict[str, list[int]] = {"train": [], "test": []}
        with tarfile.open(os.environ[DATA]) as archive:
            for member in archive:
                parts = Path(member.name).parts[-3:]
                file = archive.extractfile(member) if member.name.endswith(".jpg") else None
                if file is None or parts[0] not in files:
                    continue
                content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
                files[parts[0]].append(content)
                labels[parts[0]].append(names.setdefault(parts[1], len(names)))
        with ThreadPoolExecutor() as pool:
            found = {
                k: (torch.stack([*pool.map(decode_jpeg, v)]).float(), torch.tensor(labels[k]))
                for k, v in files.items()
            }
    else:
        from sklearn.datasets import load_digits  # noqa: PLC0415

        digits = load_digits()
        x = torch.tensor(digits.images, dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)
        y = torch.tensor(digits.target)
        few = slice(0, None) if options.cuda else slice(0, 8)
        found = {"train": (x[300:][few], y[300:][few]), "test": (x[:300][few], y[:300][few])}
    std, mean = torch.std_mean(found["train"][0], (0, 2, 3), keepdim=True)
    for name, (x, y) in found.items():
        x = ((x - mean) / (std + 1e-6)).to(options.device)  # noqa: PLW2901
        _loaded[name] = x.contiguous(memory_format=torch.channels_last), y.to(options.device)


def _network(norm: str, options: Options) -> nn.Module:
    if not options.cuda:
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        network: nn.Module = nn.Sequential(*layers, nn.Linear(4, 10))
    else:
        network = torchvision.models.resnet18(num_classes=10)
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    network = network if norm == "batchnorm" else rbnorm.convert_batchnorm(network)
    return network.to(options.device).to(memory_format=torch.channels_last)


def _moved(x: Tensor) -> Tensor:
    """Every batch shifted by up to 4 pixels and mirrored half of the time."""
    dx, dy = (int(torch.randint(-4, 5, ())) for _ in range(2))
    side = x.shape[-1]
    x = F.pad(x, (4, 4, 4, 4))[..., 4 + dy : 4 + dy + side, 4 + dx : 4 + dx + side]
    return x.flip(-1) if torch.rand(()) < 0.5 else x


def _train(norm: str, seed: int, options: Options) -> tuple[float, float]:
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = True
    model, epochs, batch = _network(norm, options), 6 if options.cuda else 1, 512
    x, y = _loaded["train"]
    steps = max(1, len(x) // batch) * epochs
    rate = 0.4 * min(batch, len(x)) / 512
    optimizer = torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.25)
    start = time.perf_counter()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), device=x.device).split(batch)[: steps // epochs]:
            with torch.autocast(options.device, torch.bfloat16):
                picture = _moved(x[chosen]) if DATA in os.environ else x[chosen]
                picture = picture.contiguous(memory_format=torch.channels_last)
                loss = F.cross_entropy(model(picture), y[chosen], label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    if options.cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / epochs
    model.eval()
    x, y = _loaded["test"]
    with torch.no_grad(), torch.autocast(options.device, torch.bfloat16):
        guesses = torch.cat([model(some).argmax(1) for some in x.split(1000)])
    return float((guesses == y).float().mean()), seconds
