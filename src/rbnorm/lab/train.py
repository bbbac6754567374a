"""One run: a config becomes a record."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

import torch
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from rbnorm.lab.config import RunConfig
from rbnorm.lab.data import ImageData, collate, first_images
from rbnorm.lab.errors import UsageError, first_line
from rbnorm.lab.evaluate import accuracy_of, on, tested
from rbnorm.lab.layers import calibration_summary, channel_mean_std
from rbnorm.lab.models import build_model
from rbnorm.lab.norms import swap
from rbnorm.lab.processes import make_accelerator
from rbnorm.lab.records import Epoch, Record, environment, now, number
from rbnorm.lab.shift import shifted_accuracy
from rbnorm.tuning import parameter_groups

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
    images, labels = first_images(data.train, config.norm_batch or config.share)
    model = _model(config, config.norm, data).to(device)
    what = f"{config.model} with norm {config.norm!r} and batch size {len(images)}"
    try:
        scores = model(on(device, images))
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
    run = _Run(config, data, on_step)
    if config.pretrain_epochs:
        model = _model(config, "bn", data)
        model, _ = run.fit(model, config.pretrain_epochs, config.pretrain_lr)
        model = swap(model, config.norm)
    else:
        model = _model(config, config.norm, data)
    model, epochs = run.fit(model, config.epochs, config.lr, scored=True)
    on_trained(model)
    device = run.accelerator.device
    if config.trace:
        images = (images for images, _ in make_loaders(config, data)[1])
        spreads = channel_mean_std(model, images, lambda x: on(device, x))
    shifted = {}
    if config.shift != "none":
        shifted = shifted_accuracy(model, data, device, controls=config.shift == "controls")
    return Record(
        config=config,
        epochs=tuple(epochs),
        channel_mean_std=spreads if config.trace else {},
        calibration=calibration_summary(model),
        shifted=shifted,
        diverged=epochs[-1].train_loss is None,
        device=str(device),
        seconds=time.perf_counter() - start,
        environment=environment(),
        created=now(),
    )


def steps_of(config: RunConfig, data: ImageData) -> int:
    """How often a run calls ``on_step``."""
    return (config.pretrain_epochs + config.epochs) * (data.size // config.batch_size)


def _model(config: RunConfig, norm: str, data: ImageData) -> nn.Module:
    model = build_model(
        config.model, norm, classes=data.classes, channels=data.channels, seed=config.seed
    )
    return model.to(memory_format=torch.channels_last)


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


def parts_of(
    images: Tensor, labels: Tensor, config: RunConfig, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """A batch cut into what is normalised together; sorted parts come in a random order.

    Otherwise the last classes would weigh most in the running statistics.
    """
    size = config.norm_batch or len(images)
    if not config.sorted_batches:
        return list(zip(images.split(size), labels.split(size), strict=True))
    parts = labels.argsort(stable=True).split(size)
    order = torch.randperm(len(parts), generator=generator).tolist()
    return [(images[parts[i]], labels[parts[i]]) for i in order]


class _Run:
    """What the phases of one run share."""

    def __init__(self, config: RunConfig, data: ImageData, on_step: Callable[[], None]) -> None:
        self.config, self.data, self.on_step = config, data, on_step
        self.order = torch.Generator().manual_seed(config.seed)
        # a batch is shared by the processes there are
        self.accelerator = make_accelerator(
            config.mixed_precision,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )

    def fit(
        self, model: nn.Module, epochs: int, lr: float, *, scored: bool = False
    ) -> tuple[nn.Module, list[Epoch]]:
        """Train, and test as the config says; the same model, and its epochs if ``scored``."""
        set_seed(self.config.seed)
        train, test = make_loaders(self.config, self.data)
        optimizer = self._optimizer(model, lr)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total_steps=epochs * len(train)
        )
        model, optimizer, train, test, scheduler = self.accelerator.prepare(
            model, optimizer, train, test, scheduler
        )
        done = []
        for epoch in range(epochs):
            start = time.perf_counter()
            loss, accuracy = self._epoch(model, train, optimizer, scheduler)
            of_test: tuple[float | None, float | None] = (None, None)
            if scored and (self.config.trace or epoch == epochs - 1):
                of_test = tested(model, test, self.accelerator)
            seconds = time.perf_counter() - start
            done.append(Epoch(number(loss), accuracy, number(of_test[0]), of_test[1], seconds))
        return self.accelerator.unwrap_model(model), done

    def _optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        decay = self.config.weight_decay
        parameters: Any = model.parameters()
        if not self.config.decay_calibration:
            parameters = [
                {**group, "weight_decay": 0.0 if group["name"] == "calibration" else decay}
                for group in parameter_groups(model, decay)
            ]
        return torch.optim.SGD(
            parameters, lr, momentum=_MOMENTUM, nesterov=True, weight_decay=decay, fused=True
        )

    def _epoch(
        self, model: nn.Module, loader: Loader, optimizer: torch.optim.Optimizer, scheduler: Any
    ) -> tuple[float, float]:
        """Mean loss and accuracy of an epoch's batches, each before its step."""
        model.train()
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        for images, labels in loader:
            optimizer.zero_grad()
            parts = parts_of(images, labels, self.config, self.order)
            for part in parts:
                last = part is parts[-1]  # processes exchange gradients once a step
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    seen.append(self._backward(model, *part, len(part[1]) / len(labels)))
            optimizer.step()
            scheduler.step()
            self.on_step()
        columns = (torch.cat(column) for column in zip(*seen, strict=True))
        return accuracy_of(*self.accelerator.gather(tuple(columns)))

    def _backward(
        self, model: nn.Module, images: Tensor, labels: Tensor, share: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores = model(on(self.accelerator.device, images))
        loss = cross_entropy(scores, labels, reduction="none")
        self.accelerator.backward(loss.mean() * share)
        return loss.detach(), scores.detach().argmax(1), labels
