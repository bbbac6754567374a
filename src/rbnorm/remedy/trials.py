"""The remedies themselves: each makes a model that can be measured, and takes itself back."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from rbnorm.diagnosis.passes import Forward, unchanged
from rbnorm.diagnosis.recalibration import recalibrate
from rbnorm.models.convert import convert_batchnorm
from rbnorm.models.tuning import parameter_groups
from rbnorm.remedy.scores import logits_of
from rbnorm.remedy.statistics import mixed_statistics

WEIGHTS = (0.25, 0.5, 0.75)
_TENT_RATE = 1e-3


@dataclass(frozen=True)
class FineTuning:
    """Training of the whole network on labelled images, before and after conversion to RBN.

    Attributes:
        batches: Of the first data set's kind, with labels; gone through as often as needed.
        steps: Optimizer steps.
        lr: Of SGD with momentum 0.9.
        calibration_lr: Of RBN's calibration, which starts where it changes nothing and moves too
            little at the rate of pretrained weights; None for ten times ``lr``.
        weight_decay: Of the parameters with two axes or more.
        loss: Called with the model's output and the second item of the batch; None for the
            cross-entropy of the classes.
    """

    batches: Iterable[Any]
    steps: int
    lr: float = 1e-3
    calibration_lr: float | None = None
    weight_decay: float = 1e-4
    loss: Callable[[Any, Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


@dataclass(frozen=True)
class Trial:
    """A remedy that can be entered, with the weight of a mixture: a model and how it is run."""

    name: str
    kind: str
    enter: Callable[[float], AbstractContextManager[tuple[nn.Module, Forward]]]
    passes: float = 0
    cost: float = 2  # passes that trying it takes, its measurement on both data sets included
    needs_labels: bool = False
    needs_data: bool = False
    needs_batches: bool = False
    batch_size: int | None = None
    weights: tuple[float, ...] = field(default=())
    layers: tuple[str, ...] | None = None


def _in(layers: tuple[str, ...] | None) -> str:
    return "" if layers is None else ", only in the named layers"


def as_it_is(model: nn.Module, forward: Forward) -> Trial:
    """No remedy."""

    @contextmanager
    def enter(_: float) -> Iterator[tuple[nn.Module, Forward]]:
        yield model, forward

    return Trial("as it is", "unchanged", enter)


def re_estimated(
    model: nn.Module,
    forward: Forward,
    batches: Iterable[Any],
    of: str,
    layers: tuple[str, ...] | None = None,
) -> Trial:
    """The running statistics of a data set in place of those of training."""

    @contextmanager
    def enter(_: float) -> Iterator[tuple[nn.Module, Forward]]:
        with unchanged(model):
            recalibrate(model, batches, forward=forward, layers=layers)
            yield model, forward

    return Trial(
        f"statistics re-estimated on the {of} data{_in(layers)}",
        "re-estimated",
        enter,
        passes=1,
        cost=3,
        needs_data=of == "second",
        layers=layers,
    )


def of_the_batch(
    model: nn.Module,
    forward: Forward,
    size: int,
    weights: tuple[float, ...] = (1.0,),
    layers: tuple[str, ...] | None = None,
) -> Trial:
    """Statistics of each test batch, or a mixture with the running ones."""
    mixed = weights != (1.0,)

    @contextmanager
    def enter(weight: float) -> Iterator[tuple[nn.Module, Forward]]:
        with mixed_statistics(model, weight, layers):
            yield model, forward

    name = "running and test batch statistics mixed" if mixed else "statistics of the test batch"
    return Trial(
        f"{name}, batches of {size}{_in(layers)}",
        "mixed" if mixed else "test-batch",
        enter,
        passes=len(weights) if mixed else 0,
        cost=2 + (len(weights) if mixed else 0),
        needs_data=mixed,
        needs_batches=True,
        batch_size=size,
        weights=weights if mixed else (),
        layers=layers,
    )


def has_tent() -> bool:
    """Whether the package torch-ttt is there, and einops, which it needs and does not declare."""
    return all(importlib.util.find_spec(name) for name in ("torch_ttt", "einops"))


class _OfScores(nn.Module):
    """Gives the scores of the classes alone, and keeps what a model's output was."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.output = model, None

    def forward(self, x: Tensor) -> Tensor | None:
        self.output = self.model(x)
        return logits_of(self.output)


def tent(model: nn.Module, size: int) -> Trial:
    """TENT by torch-ttt: the affine parameters follow the entropy of the predictions, online."""

    @contextmanager
    def enter(_: float) -> Iterator[tuple[nn.Module, Forward]]:
        from torch_ttt.engine.tent_engine import TentEngine  # noqa: PLC0415 - optional

        options = {"lr": _TENT_RATE, "num_steps": 1, "copy_model": False}
        twin = _OfScores(copy.deepcopy(model))
        engine = TentEngine(twin, options).eval()
        for layer in engine.model.modules():
            layer.training = isinstance(layer, _BatchNorm)
        device = next(engine.parameters()).device

        def adapted(_: nn.Module, batch: Any) -> Any:
            inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
            with torch.enable_grad():
                engine(inputs.to(device))
            return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, twin.output)

        yield engine.model, adapted

    return Trial(
        f"TENT, batches of {size}",
        "tent",
        enter,
        passes=3,
        cost=8,
        needs_batches=True,
        batch_size=size,
    )


def fine_tuned(
    model: nn.Module, forward: Forward, tuning: FineTuning, *, convert: bool, cost: float
) -> Trial:
    """The network trained on, as it is or converted to RBN."""

    @contextmanager
    def enter(_: float) -> Iterator[tuple[nn.Module, Forward]]:
        with unchanged(model):  # the random numbers too: both see the same augmented images
            own = copy.deepcopy(model)
            yield _trained(convert_batchnorm(own) if convert else own, forward, tuning), forward

    return Trial(
        f"fine-tuned {'converted to RBN' if convert else 'as it is'}, {tuning.steps} steps",
        "fine-tuned",
        enter,
        passes=cost,
        cost=2 + 3 * cost,
        needs_labels=True,
    )


def _cross_entropy(output: Any, target: Any) -> Tensor:
    logits = logits_of(output)
    if logits is None:
        raise ValueError("fine-tuning needs class scores, or a loss= of its own")
    return F.cross_entropy(logits, target.to(logits.device).long())


def _again(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, over and over."""
    while True:
        count = 0
        for count, batch in enumerate(batches, 1):  # noqa: B007
            yield batch
        if not count:
            raise ValueError("fine_tuning.batches must give at least one batch, got none")


def _trained(model: nn.Module, forward: Forward, tuning: FineTuning) -> nn.Module:
    rate = 10 * tuning.lr if tuning.calibration_lr is None else tuning.calibration_lr
    groups = parameter_groups(model, tuning.weight_decay, calibration={"lr": rate})
    optimizer = torch.optim.SGD(groups, lr=tuning.lr, momentum=0.9)
    loss_of = tuning.loss or _cross_entropy
    model.train()
    batches = _again(tuning.batches)
    with torch.enable_grad():
        for _ in range(tuning.steps):
            batch = next(batches)
            optimizer.zero_grad()
            loss_of(forward(model, batch), batch[1]).backward()
            optimizer.step()
    return model.eval()


def statistics_trials(
    model: nn.Module,
    forward: Forward,
    first: Iterable[Any],
    second: Iterable[Any],
    sizes: Sequence[int],
    named: tuple[str, ...],
) -> list[Trial]:
    """Every remedy that changes statistics alone, the cheap ones first."""
    trials = [
        re_estimated(model, forward, second, "second"),
        *(of_the_batch(model, forward, size) for size in sizes),
        re_estimated(model, forward, first, "first"),
    ]
    if named:
        trials.append(re_estimated(model, forward, second, "second", named))
        trials += [of_the_batch(model, forward, size, layers=named) for size in sizes[:1]]
    return trials + [of_the_batch(model, forward, size, WEIGHTS) for size in sizes]
