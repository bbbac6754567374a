"""One run: a config becomes a record."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rbnorm_lab.config import RunConfig
from rbnorm_lab.data import ImageData, first_images
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.evaluate import on
from rbnorm_lab.folders import make_folder
from rbnorm_lab.image_moments import match_moments
from rbnorm_lab.layers import calibration_summary, channel_mean_std
from rbnorm_lab.models import build_model
from rbnorm_lab.norms import swap
from rbnorm_lab.processes import make_accelerator
from rbnorm_lab.records import Epoch, Record, environment, now, number
from rbnorm_lab.shift import shifted_accuracy
from rbnorm_lab.training import checkpoint
from rbnorm_lab.training.loop import Training, steps_of_epoch
from rbnorm_lab.training.order import held_out
from rbnorm_lab.training.recipe import Groups, groups_of

Build = Callable[[RunConfig, ImageData], nn.Module]
Measure = Callable[[nn.Module, RunConfig, ImageData, torch.device], dict[str, dict[str, float]]]


def model_of(config: RunConfig, data: ImageData) -> nn.Module:
    """The model that a config names, with random weights, for its data."""
    model = build_model(
        config.model, config.norm, classes=data.classes, channels=data.channels, seed=config.seed
    )
    if config.match_moments:
        match_moments(model, data)
    return model.to(memory_format=torch.channels_last)


def check_run(
    config: RunConfig, data: ImageData, device: torch.device, build: Build | None = None
) -> None:
    """Try one forward and backward pass, so that what cannot be trained is known beforehand.

    Raises:
        UsageError: The model cannot be trained on this data with this norm and batch size.
    """
    steps_of_epoch(config, data)
    images, labels = first_images(data.train, config.norm_batch or config.share)
    model = (build or model_of)(config, data).to(device)
    what = f"{config.model} with norm {config.norm!r} and batch size {len(images)}"
    try:
        scores = model(on(device, images))
    except Exception as error:
        raise UsageError(
            f"{what} cannot take the images of {config.data} ({first_line(error)})"
        ) from error
    if not isinstance(scores, Tensor) or scores.ndim != labels.ndim + 1:
        raise UsageError(f"{what} is no classifier: it does not give a score for every class")
    if scores.shape[1] < data.classes:
        raise UsageError(
            f"the head of {config.model} has {scores.shape[1]} classes, fewer than the "
            f"{data.classes} of {config.data}"
        )
    data.task.losses(scores, labels.to(device)).mean().backward()


def train_run(
    config: RunConfig,
    data: ImageData,
    on_step: Callable[[], None] = lambda: None,
    on_trained: Callable[[nn.Module], None] = lambda model: None,
    *,
    on_epoch: Callable[[Training], None] = lambda training: None,
    build: Build | None = None,
    groups: Groups = groups_of,
    measure: Measure = shifted_accuracy,
    folder: Path | None = None,
    accelerator: Accelerator | None = None,
) -> Record:
    """Train and test one model.

    The same config gives the same metrics again, and configs that differ only in the norm get the
    same initial weights and the same batches in the same order.

    Args:
        config: What to run.
        data: What ``config`` names.
        on_step: Called after every optimiser step.
        on_trained: Called with the trained model.
        on_epoch: Called with the training after every epoch, when it has been evaluated.
        build: Makes the model of a config; :func:`model_of` unless it is given.
        groups: The groups of its parameters.
        measure: Accuracies of the trained model by statistics and condition, where ``shift`` asks
            for any.
        folder: Where to keep a checkpoint of every epoch, and to continue from the newest. Epochs
            before the norm takes its place are not kept.
        accelerator: One of the config's mixed precision; made here unless it is given.

    Raises:
        UsageError: With a folder: what is in it is of another run, it cannot be written, or the
            loss is not finite.
    """
    start = time.perf_counter()
    accelerator = accelerator or make_accelerator(config.mixed_precision)

    def phase(model: nn.Module, config: RunConfig) -> Training:
        return Training(model, config, data, accelerator, groups)

    def make(config: RunConfig) -> nn.Module:
        return (build or model_of)(config, data)

    def end_epoch() -> None:
        metrics = training.end_epoch(test=config.trace or training.epoch == config.epochs)
        if folder and not math.isfinite(metrics["train_loss"]):
            raise UsageError(
                f"the training loss is no longer finite in epoch {training.epoch}: choose another "
                "--out and a smaller --lr"
            )
        on_epoch(training)

    found = checkpoint.newest(folder) if folder else None
    if config.pretrain_epochs and not found:
        before = replace(
            config, norm="bn", epochs=config.pretrain_epochs, lr=config.pretrain_lr, trace=False
        )
        first = phase(make(before), before)
        first.fit(on_step, lambda: first.end_epoch(test=False))
        accelerator.free_memory()
        training = phase(swap(first.module, config.norm), config)
    else:
        training = phase(make(config), config)
    if folder:
        if found:
            checkpoint.load(training, found)
        make_folder(folder)
        training.fit(on_step, end_epoch, partial(checkpoint.save, training, folder))
    else:
        training.fit(on_step, end_epoch)
    return _record(training, on_trained, measure, start)


def _record(
    training: Training, on_trained: Callable[[nn.Module], None], measure: Measure, start: float
) -> Record:
    config, data, device = training.config, training.data, training.device
    model = training.module.eval()
    on_trained(model)
    spreads, shifted = {}, {}
    if config.trace:
        images = (images for images, _ in held_out(replace(config, processes=1), data, 0, device))
        spreads = channel_mean_std(model, images, lambda x: on(device, x))
    if config.shift != "none":
        shifted = measure(model, config, data, device)
    epochs = [
        Epoch(
            number(metrics["train_loss"]),
            metrics["train_accuracy"],
            number(metrics.get("test_loss")),
            metrics.get("test_accuracy"),
            seconds,
        )
        for metrics, seconds in zip(training.history, training.seconds, strict=True)
    ]
    return Record(
        config=config,
        epochs=tuple(epochs),
        channel_mean_std=spreads,
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
    return (config.pretrain_epochs + config.epochs) * steps_of_epoch(config, data)
