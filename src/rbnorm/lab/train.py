"""One run: a config becomes a record."""

import time
from collections.abc import Callable
from typing import Any, Final

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_accuracy

from rbnorm.lab.config import RunConfig
from rbnorm.lab.data import ImageData, collate
from rbnorm.lab.errors import UsageError, first_line
from rbnorm.lab.layers import calibration_summary, channel_mean_std
from rbnorm.lab.models import build_model
from rbnorm.lab.records import Epoch, Record, environment, now, number

_TEST_BATCH: Final = 250  # for every process
_MOMENTUM: Final = 0.9

Loader = DataLoader[Any]


def check_run(config: RunConfig, data: ImageData, device: torch.device) -> None:
    """Try one forward and backward pass, so that what cannot be trained is known beforehand.

    Raises:
        UsageError: The model cannot be trained on this data with this norm and batch size.
    """
    if config.batch_size > data.size:
        raise UsageError(
            f"batch size {config.batch_size} is more than the {data.size} training images of "
            f"{config.data}"
        )
    images, labels = first_images(data.train, config.batch_size // config.processes)
    model = _model(config, data).to(device)
    what = f"{config.model} with norm {config.norm!r} and batch size {config.batch_size}"
    try:
        scores = model(_on(device, images))
    except Exception as error:
        raise UsageError(
            f"{what} cannot take the images of {config.data} ({first_line(error)})"
        ) from error
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        raise UsageError(f"{what} is no classifier: it does not give a score for every class")
    if scores.shape[1] < data.classes:
        raise UsageError(
            f"the head of {config.model} has {scores.shape[1]} classes, fewer than the "
            f"{data.classes} of {config.data}"
        )
    cross_entropy(scores, labels.to(device)).backward()


def first_images(dataset: Dataset[Any], count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` images and labels of a data set, as a batch."""
    images, labels = next(iter(DataLoader(dataset, batch_size=count, collate_fn=collate)))
    return images, labels


def count_processes() -> int:
    """How many processes train together: those of ``torchrun`` or ``accelerate launch``, or 1."""
    processes: int = PartialState(cpu=_on_cpu()).num_processes
    return processes


def _on_cpu() -> bool:
    # accelerate joins processes without an accelerator only when told that they are on the CPU
    return not torch.accelerator.is_available()


def make_accelerator(mixed_precision: str) -> Accelerator:
    """What places tensors, casts and gathers; a batch is shared by the processes there are.

    Raises:
        UsageError: The device cannot compute in this precision.
    """
    try:
        return Accelerator(
            cpu=_on_cpu(),
            mixed_precision=mixed_precision,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
    except ValueError as error:
        raise UsageError(
            f"mixed precision {mixed_precision!r} cannot be had here ({first_line(error)})"
        ) from error


def train_run(
    config: RunConfig,
    data: ImageData,
    on_step: Callable[[], None] = lambda: None,
    on_trained: Callable[[nn.Module], None] = lambda model: None,
) -> Record:
    """Train and test one model.

    Stochastic gradient descent with Nesterov momentum, a one-cycle learning rate and cross-entropy.
    The same config gives the same metrics again, and configs that differ only in the norm get the
    same initial weights and the same batches in the same order.

    Args:
        config: What to run.
        data: What ``config`` names.
        on_step: Called after every optimiser step.
        on_trained: Called with the trained model.
    """
    start = time.perf_counter()
    accelerator = make_accelerator(config.mixed_precision)
    model = _model(config, data)
    set_seed(config.seed)
    train_loader, test_loader = make_loaders(config, data)
    optimizer = torch.optim.SGD(
        model.parameters(),
        config.lr,
        momentum=_MOMENTUM,
        nesterov=True,
        weight_decay=config.weight_decay,
        fused=True,
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.epochs * len(train_loader)
    )
    raw_test_loader = test_loader
    model, optimizer, train_loader, test_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, test_loader, scheduler
    )
    epochs = []
    for _ in range(config.epochs):
        epoch_start = time.perf_counter()
        train = _train_epoch(model, train_loader, optimizer, scheduler, accelerator, on_step)
        test = _test_epoch(model, test_loader, accelerator)
        seconds = time.perf_counter() - epoch_start
        epochs.append(Epoch(number(train[0]), train[1], number(test[0]), test[1], seconds))
    model = accelerator.unwrap_model(model)
    on_trained(model)
    spreads = channel_mean_std(
        model, (images for images, _ in raw_test_loader), lambda x: _on(accelerator.device, x)
    )
    return Record(
        config=config,
        epochs=tuple(epochs),
        channel_mean_std=spreads,
        calibration=calibration_summary(model),
        diverged=epochs[-1].train_loss is None,
        device=str(accelerator.device),
        seconds=time.perf_counter() - start,
        environment=environment(),
        created=now(),
    )


def _model(config: RunConfig, data: ImageData) -> nn.Module:
    model = build_model(
        config.model,
        config.norm,
        classes=data.classes,
        channels=data.channels,
        seed=config.seed,
    )
    return model.to(memory_format=torch.channels_last)


def _on(device: torch.device, images: Tensor) -> Tensor:
    return images.to(device, memory_format=torch.channels_last)


def make_loaders(config: RunConfig, data: ImageData) -> tuple[Loader, Loader]:
    """The training batches, shuffled by the config's seed alone, and the test batches."""
    common: dict[str, Any] = {
        "collate_fn": collate,
        "num_workers": config.workers,
        "persistent_workers": config.workers > 0,
    }
    order = torch.Generator().manual_seed(config.seed)
    train = DataLoader(
        data.train, config.batch_size, shuffle=True, drop_last=True, generator=order, **common
    )
    return train, DataLoader(data.test, _TEST_BATCH * config.processes, **common)


def _train_epoch(
    model: nn.Module,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    accelerator: Accelerator,
    on_step: Callable[[], None],
) -> tuple[float, float]:
    """Mean loss and accuracy of an epoch's batches, each before its step."""
    model.train()
    losses, predictions, targets = [], [], []
    for images, labels in loader:
        optimizer.zero_grad()
        scores = model(_on(accelerator.device, images))
        loss = cross_entropy(scores, labels, reduction="none")
        accelerator.backward(loss.mean())
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
        predictions.append(scores.detach().argmax(1))
        targets.append(labels)
        on_step()
    gathered = accelerator.gather((torch.cat(losses), torch.cat(predictions), torch.cat(targets)))
    return _scores(*gathered, classes=scores.shape[1])


@torch.no_grad()
def _test_epoch(model: nn.Module, loader: Loader, accelerator: Accelerator) -> tuple[float, float]:
    """Mean loss and accuracy of the test images in evaluation mode."""
    model.eval()
    batches = []
    for images, labels in loader:
        scores = model(_on(accelerator.device, images))
        loss = cross_entropy(scores, labels, reduction="none")
        batches.append(accelerator.gather_for_metrics((loss, scores.argmax(1), labels)))
    return _scores(
        *(torch.cat(part) for part in zip(*batches, strict=True)), classes=scores.shape[1]
    )


def _scores(
    losses: Tensor, predictions: Tensor, targets: Tensor, *, classes: int
) -> tuple[float, float]:
    accuracy = multiclass_accuracy(predictions, targets, classes, average="micro").item()
    # a share of whole images: without the rounding to float32 equal differences stay equal
    return losses.double().mean().item(), round(accuracy * len(targets)) / len(targets)
