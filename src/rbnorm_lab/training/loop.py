"""The loop of every training: the state of a run in one process, its steps and its evaluation."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm_lab.config import RunConfig
from rbnorm_lab.data import ImageData
from rbnorm_lab.errors import UsageError
from rbnorm_lab.evaluate import on
from rbnorm_lab.training.order import STEP, Batch, derive, held_out, loaded, training_batches
from rbnorm_lab.training.recipe import Groups, groups_of, optimiser_of

_SUMS: Final = 2  # of losses, and of the labels they are of; the task's counts follow


def _nothing(*_: Any) -> None:
    pass


def steps_of_epoch(config: RunConfig, data: ImageData) -> int:
    """Optimiser steps of one epoch.

    Raises:
        UsageError: There is less than one step of images.
    """
    if config.batch_size > data.size:
        raise UsageError(
            f"batch size {config.batch_size} is more than the {data.size} training images of "
            f"{config.data}"
        )
    return data.size // config.batch_size


def frozen_layers(module: nn.Module) -> list[nn.Module]:
    """The layers with running statistics that are not those of a new layer."""
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_var is not None
        and not layer.running_var.eq(1).all()
    ]


class Training:
    """One run: its model, its optimiser, and where it stands.

    Nothing random is kept between steps: the order of an epoch, the augmentation of a batch and the
    random numbers of a step are functions of the seed and of where they stand.

    Args:
        module: What is trained.
        config: The run; the module stands for its model and norm.
        data: What ``config`` names.
        accelerator: Made for ``config``'s mixed precision.
        groups: The groups of parameters.

    Attributes:
        step: Optimiser steps taken.
        loss: Mean loss of this process's newest batch.
        lr: Learning rate of the newest step, that of the first group.
        kept: The layers whose statistics are kept.
        history: The metrics of the epochs that ended.
        seconds: Their durations.
        rate: Images trained on in a second, over all processes, in the newest epoch.

    Raises:
        UsageError: There is less than one step of images.
    """

    def __init__(
        self,
        module: nn.Module,
        config: RunConfig,
        data: ImageData,
        accelerator: Accelerator,
        groups: Groups = groups_of,
    ) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        self.device: torch.device = accelerator.device
        self.epoch_steps = steps_of_epoch(config, data)
        self.module = module.to(self.device).to(memory_format=torch.channels_last)
        optimizer, self.scheduler = optimiser_of(self.module, config, self.epoch_steps, groups)
        self.model, self.optimizer = accelerator.prepare(self.module, optimizer)
        self.kept = frozen_layers(self.module) if config.frozen else []
        self._train()
        self.step, self.lr = 0, config.lr
        self.loss, self.rate = torch.tensor(torch.nan), math.nan
        self.history: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.sums = self._zeros()  # of this process, in the epoch that is under way

    def _train(self) -> None:
        self.module.train()
        for layer in self.kept:
            layer.eval()

    @property
    def epoch(self) -> int:
        """The epoch of the next step, counted from 0."""
        return self.step // self.epoch_steps

    def identity(self) -> dict[str, Any]:
        """What the run is."""
        facts = {"training_images": self.data.size, "classes": self.data.classes}
        return {**self.config.identity(), **facts}

    def fit(
        self,
        on_step: Callable[[], None] = _nothing,
        on_epoch: Callable[[], object] | None = None,
        save: Callable[[], None] = _nothing,
    ) -> None:
        """Train to the end of the last epoch, from wherever the run stands.

        Args:
            on_step: Called after every step.
            on_epoch: Called after every epoch's last step, in place of :meth:`end_epoch`, which it
                is to call.
            save: Called after every epoch, in all processes.
        """
        steps = range(self.step, self.config.epochs * self.epoch_steps)
        rank = self.accelerator.process_index
        batches = training_batches(self.config, self.data, rank, steps, self.device)
        first, start = self.step, time.perf_counter()
        for _ in steps:
            self.advance(batches)
            on_step()
            if self.step % self.epoch_steps == 0:
                images = (self.step - first) * self.config.batch_size
                self.rate = images / (time.perf_counter() - start)
                (on_epoch or self.end_epoch)()
                self.seconds.append(time.perf_counter() - start)
                save()
                first, start = self.step, time.perf_counter()

    def advance(self, batches: Iterator[list[Batch]]) -> None:
        """Take one optimiser step on one batch, cut into what is normalised together."""
        parts = next(batches)  # a loader that begins draws a random number
        torch.manual_seed(derive(self.config.seed, STEP, self.step, self.accelerator.process_index))
        self.optimizer.zero_grad()
        images = sum(len(labels) for _, labels in parts)
        for part in parts:
            last = part is parts[-1]  # processes exchange gradients once a step
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                self._backward(*part, len(part[1]) / images)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.step += 1

    def _backward(self, images: Tensor, labels: Tensor, share: float) -> None:
        labels = labels.to(self.device, non_blocking=True)
        scores = self.model(on(self.device, images))
        losses = self.data.task.losses(scores, labels)
        self.accelerator.backward(losses.mean() * share)
        self.loss = losses.detach().mean()
        self.sums += self._sums(losses, scores, labels)

    def _zeros(self) -> Tensor:
        count = _SUMS + self.data.task.numbers
        return torch.zeros(count, dtype=torch.float64, device=self.device)

    def _sums(self, losses: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        losses, counts = losses.detach().double(), self.data.task.counts(scores.detach(), labels)
        count = losses.new_tensor([losses.numel()])
        return torch.cat((losses.sum().view(1), count, counts.double()))

    def end_epoch(self, *, test: bool = True) -> dict[str, float]:
        """End an epoch after its last step; its metrics become part of the history.

        Args:
            test: Whether to evaluate on the held-out images.
        """
        loss, accuracy = self._metrics(self.accelerator.reduce(self.sums))
        self.sums.zero_()
        metrics = {
            "epoch": self.epoch,
            "lr": self.lr,
            "train_loss": loss,
            "train_accuracy": accuracy,
            **(self.evaluate() if test else {}),
        }
        self.history.append(metrics)
        return metrics

    def _metrics(self, sums: Tensor) -> tuple[float, float]:
        return float(sums[0] / sums[1]), self.data.task.value(sums[_SUMS:])

    def facts(self) -> dict[str, Any]:
        """What the run is and where it stands, beside weights and optimiser, as JSON says it."""
        return {
            "identity": self.identity(),
            "step": self.step,
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "seconds": self.seconds,
        }

    def restore(self, facts: dict[str, Any]) -> None:
        """Stand where :meth:`facts` says; weights and optimiser are the caller's to restore."""
        self.step, self.history, self.seconds = (facts[k] for k in ("step", "history", "seconds"))
        self.scheduler.load_state_dict(facts["scheduler"])

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean loss and accuracy on the held-out images."""
        if self.accelerator.num_processes > 1:
            for tensor in self.module.state_dict().values():
                broadcast(tensor)  # every process has its own statistics: the first one's count
        self.module.eval()
        totals = self._zeros()
        rank = self.accelerator.process_index
        for images, truth in loaded(held_out(self.config, self.data, rank, self.device)):
            labels = truth.to(self.device, non_blocking=True)
            with self.accelerator.autocast():
                scores = self.module(on(self.device, images)).float()
            totals += self._sums(self.data.task.losses(scores, labels), scores, labels)
        self._train()
        loss, accuracy = self._metrics(self.accelerator.reduce(totals))
        return {"test_loss": loss, "test_accuracy": accuracy}
