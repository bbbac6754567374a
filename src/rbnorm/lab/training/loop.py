"""The state of a run in one process, and what a step and an evaluation do."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset

from rbnorm.lab.data import ImageData, collate
from rbnorm.lab.errors import UsageError, first_line
from rbnorm.lab.models import build_model
from rbnorm.lab.training.checkpoint import Checkpoint
from rbnorm.lab.training.order import loaded
from rbnorm.lab.training.recipe import MOMENTUM, Recipe, derive
from rbnorm.modules import _RepresentativeBatchNorm
from rbnorm.sync import convert_sync

_STEP: Final = 2  # beside the streams of rbnorm.lab.training.order

Batches = Iterator[tuple[Tensor, Tensor]]


def synchronise(model: nn.Module, norm: str, device: torch.device) -> nn.Module:
    """Let the norms of a model share their batch statistics with the other processes.

    Raises:
        UsageError: The norm has none, or torch cannot synchronise it on this device.
    """
    if any(isinstance(layer, _RepresentativeBatchNorm) for layer in model.modules()):
        return convert_sync(model)
    if not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()):
        raise UsageError(f"--sync-norm: norm {norm!r} has no batch statistics to synchronise")
    if device.type == "cpu":
        raise UsageError(
            f"--sync-norm: torch synchronises norm {norm!r} on accelerators only, not on the CPU"
        )
    import timm  # noqa: PLC0415 - takes seconds to import

    layers: Any = timm.layers
    synchronised: nn.Module = layers.convert_sync_batchnorm(model)  # timm's norm-act layers too
    return synchronised


class Training:
    """One run: its model, the average of its weights, its optimiser, and where it stands.

    Args:
        recipe: What to run.
        data: What ``recipe`` names.
        accelerator: Made for ``recipe``'s mixed precision and accumulation.

    Raises:
        UsageError: There is less than one step of images, or a norm cannot be synchronised.
    """

    def __init__(self, recipe: Recipe, data: ImageData, accelerator: Accelerator) -> None:
        run = recipe.run
        self.recipe, self.data, self.accelerator = recipe, data, accelerator
        self.device: torch.device = accelerator.device
        self.epoch_steps = data.size // run.batch_size
        if not self.epoch_steps:
            raise UsageError(
                f"batch size {run.batch_size} is more than the {data.size} training images of "
                f"{run.data}"
            )
        module = build_model(
            run.model, run.norm, classes=data.classes, channels=data.channels, seed=run.seed
        )
        if recipe.sync_norm:
            module = synchronise(module, run.norm, self.device)
        self.module = module.to(self.device).to(memory_format=torch.channels_last)
        self.average: AveragedModel | None = None
        if recipe.ema:
            self.average = AveragedModel(
                self.module, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True
            ).eval()
        optimizer = torch.optim.SGD(
            self.module.parameters(),
            run.lr,
            momentum=MOMENTUM,
            weight_decay=run.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = accelerator.prepare(self.module, optimizer)
        self.step = 0
        #: Mean loss of this process's newest batch.
        self.loss = torch.tensor(torch.nan)
        #: Sum of the losses, right answers and images of the epoch: this process's own newest, and
        #: what all processes have put together.
        self.own = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.totals = torch.zeros_like(self.own)
        self.history: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """The epoch of the next step, counted from 0."""
        return self.step // self.epoch_steps

    def identity(self) -> dict[str, Any]:
        """What the run is."""
        return {
            **self.recipe.identity(),
            "training_images": self.data.size,
            "classes": self.data.classes,
        }

    def advance(self, batches: Batches) -> None:
        """Take one optimiser step, on as many batches as it accumulates."""
        run = self.recipe.run
        torch.manual_seed(derive(run.seed, _STEP, self.step, self.accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(self.epoch)
        for _ in range(self.recipe.accumulate):
            images, labels = self._moved(*next(batches))
            with self.accelerator.accumulate(self.model):
                scores = self.model(images)
                loss = cross_entropy(scores, labels)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.loss = loss.detach()
            self.own += _sums(self.loss * len(labels), scores, labels)
        if self.average:
            self.average.update_parameters(self.module)
        self.step += 1

    def end_epoch(self, on_batch: Callable[[], None]) -> dict[str, float]:
        """Evaluate after an epoch's last step; its metrics become part of the history.

        Raises:
            UsageError: The training loss is not finite.
        """
        loss, right, images = self._settled().tolist()
        self.totals.zero_()
        metrics = {
            "epoch": self.epoch,
            "lr": self.recipe.lr_at(self.epoch - 1),
            "train_loss": loss / images,
            "train_accuracy": right / images,
            **self.evaluate(on_batch),
        }
        self.history.append(metrics)
        return metrics

    def _settled(self) -> Tensor:
        """The totals, with what every process has counted since they were last asked for."""
        self.totals += self.accelerator.reduce(self.own)
        self.own.zero_()
        if not self.totals.isfinite().all():
            raise UsageError(
                f"the training loss is no longer finite at step {self.step}: choose another --out "
                "and a smaller --lr"
            )
        return self.totals

    def snapshot(self) -> Checkpoint:
        """Where the run stands; all processes take part.

        Raises:
            UsageError: The training loss is not finite.
        """
        scaler = self.accelerator.scaler
        return Checkpoint(
            identity=self.identity(),
            step=self.step,
            model=self.module.state_dict(),
            ema=self.average.module.state_dict() if self.average else None,
            optimizer=self.optimizer.state_dict(),
            scaler=scaler.state_dict() if scaler else None,
            totals=self._settled().tolist(),
            history=self.history,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go to where another process with this recipe stood.

        Raises:
            UsageError: The checkpoint does not fit the model.
        """
        try:
            self.module.load_state_dict(checkpoint.model)
            if self.average and checkpoint.ema:
                self.average.module.load_state_dict(checkpoint.ema)
                self.average.n_averaged.fill_(checkpoint.step)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            if self.accelerator.scaler and checkpoint.scaler:
                self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UsageError(
                f"the checkpoint of step {checkpoint.step} does not fit this version of "
                f"{self.recipe.run.model} ({first_line(error)})"
            ) from error
        self.step, self.history = checkpoint.step, list(checkpoint.history)
        self.own.zero_()
        self.totals.copy_(torch.tensor(checkpoint.totals, dtype=self.totals.dtype))

    def evaluate(self, on_batch: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Mean loss and accuracy on the held-out images, of the model and of its average."""
        found: dict[str, float] = {}
        for name, module in (("test", self.module), ("ema", self.average)):
            if module is not None:
                scores = self._evaluate(module, on_batch)
                found |= {f"{name}_loss": scores[0], f"{name}_accuracy": scores[1]}
        return found

    @property
    def evaluation_batches(self) -> int:
        """Number of batches of :meth:`evaluate` in this process."""
        return len(self._held_out()) * (2 if self.average else 1)

    def _held_out(self) -> DataLoader[Any]:
        """This process's share of the held-out images, each image in one process."""
        rank, run = self.accelerator.process_index, self.recipe.run
        own = range(rank, len(self.data.test), run.processes)  # type: ignore[arg-type]
        return DataLoader(
            Subset(self.data.test, own),
            self.recipe.share,
            collate_fn=collate,
            num_workers=run.workers,
            pin_memory=self.device.type == "cuda",
        )

    @torch.no_grad()
    def _evaluate(self, module: nn.Module, on_batch: Callable[[], None]) -> tuple[float, float]:
        for tensor in module.state_dict().values():
            broadcast(tensor)  # every process has statistics of its own: the first one's count
        module.eval()
        totals = torch.zeros_like(self.totals)
        for batch in loaded(self._held_out()):
            images, labels = self._moved(*batch)
            with self.accelerator.autocast():
                scores = module(images).float()
            loss = cross_entropy(scores, labels, reduction="sum")
            totals += _sums(loss, scores, labels)
            on_batch()
        self.module.train()
        loss, right, count = self.accelerator.reduce(totals).tolist()
        return loss / count, right / count

    def _moved(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        return images, labels.to(self.device, non_blocking=True)


def _sums(loss: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """A batch's sum of losses, right answers and images."""
    right = (scores.detach().argmax(1) == labels).sum()
    images = torch.full_like(right, len(labels))
    return torch.stack([loss.double(), right.double(), images.double()])
