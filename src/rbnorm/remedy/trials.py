"""The remedies themselves: each makes a model that can be measured, and undoes itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rbnorm.diagnosis.passes import Forward, check_repeatable, target_in, unchanged
from rbnorm.diagnosis.recalibration import recalibrate
from rbnorm.diagnosis.scores import logits_of
from rbnorm.models.convert import convert_batchnorm
from rbnorm.models.tuning import parameter_groups
from rbnorm.remedy.moments import MatchMoments, matched
from rbnorm.remedy.statistics import mixed_statistics
from rbnorm.remedy.tent import Tent

WEIGHTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class FineTuning:
    """Training of the whole network on labelled images, before and after conversion to RBN.

    Attributes:
        batches: Of the first data set's kind, with labels; gone through as often as needed.
        steps: Optimizer steps.
        lr: Of SGD with momentum 0.9 and a weight decay of 0.0001 of the parameters with two axes or
            more. RBN's calibration, which starts where it changes nothing and moves too little at
            the rate of pretrained weights, has ten times as much.
    """

    batches: Iterable[Any]
    steps: int
    lr: float = 1e-3

    def __post_init__(self) -> None:
        check_repeatable("batches", self.batches)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


@dataclass(frozen=True)
class Trial:
    """A remedy: what is put in place to try it, and what it takes.

    Attributes:
        enter: Puts it in place for the time of the context, in the weight of a mixture; gives
            another model and another way to run it where it has such.
        cost: Passes that trying it takes, its measurement on both data sets included.
        weights: Those of a mixture, to choose from.
        online: It learns from what it predicts on: each data set needs a fresh one.
        needs: What :class:`rbnorm.Remedy` says of it under the same names.
    """

    name: str
    kind: str
    enter: Callable[[float], AbstractContextManager[tuple[nn.Module, Forward] | None]]
    cost: float = 2
    weights: tuple[float, ...] = ()
    online: bool = False
    needs: Mapping[str, Any] = field(default_factory=dict)


def own_moments_set(model: nn.Module, match: MatchMoments) -> Trial:
    """Each image's own mean, contrast or both set to those of the first data."""
    what = "mean and contrast" if match.match == "both" else match.match
    whose = "channel" if match.mean.ndim else "image"
    return Trial(f"each {whose}'s own {what} set", "moments", lambda _: matched(model, match))


def re_estimated(model: nn.Module, forward: Forward, batches: Iterable[Any]) -> Trial:
    """The running statistics of the second data set in place of those of training."""

    @contextmanager
    def enter(_: float) -> Iterator[None]:
        with unchanged(model):
            recalibrate(model, batches, forward=forward)
            yield

    needs = {"passes": 1, "needs_data": True}
    return Trial(
        "statistics re-estimated on the second data", "re-estimated", enter, 3, needs=needs
    )


def of_the_batch(model: nn.Module, size: int, *, mixed: bool = False) -> Trial:
    """Statistics of each test batch, or a mixture with the running ones."""
    name = "running and test batch statistics mixed" if mixed else "statistics of the test batch"
    kind, weights = ("mixed", WEIGHTS) if mixed else ("test-batch", ())
    needs = {"passes": len(weights), "needs_data": mixed, **_batches(size)}
    enter, cost = partial(mixed_statistics, model), 2 + len(weights)
    return Trial(f"{name}, batches of {size}", kind, enter, cost, weights, needs=needs)


def tent(model: nn.Module, forward: Forward, size: int) -> Trial:
    """TENT, by :class:`rbnorm.remedy.tent.Tent`."""

    def enter(_: float) -> AbstractContextManager[tuple[nn.Module, Forward]]:
        adapting = Tent(model, forward)
        return nullcontext((adapting.model, adapting))

    needs = {"passes": 3, **_batches(size)}
    return Trial(f"TENT, batches of {size}", "tent", enter, 8, online=True, needs=needs)


def _batches(size: int) -> dict[str, Any]:
    return {"needs_batches": True, "batch_size": size}


def fine_tuned(
    model: nn.Module, forward: Forward, tuning: FineTuning, *, convert: bool, cost: float
) -> Trial:
    """The network trained on, as it is or converted to RBN."""

    @contextmanager
    def enter(_: float) -> Iterator[tuple[nn.Module, Forward]]:
        with unchanged(model):  # the random numbers too: both see the same augmented images
            own = copy.deepcopy(model)
            yield _trained(convert_batchnorm(own) if convert else own, forward, tuning), forward

    name = f"fine-tuned {'converted to RBN' if convert else 'as it is'}, {tuning.steps} steps"
    needs = {"passes": cost, "needs_labels": True}
    return Trial(name, "fine-tuned", enter, 2 + 3 * cost, needs=needs)


def _cross_entropy(output: Any, target: Any) -> Tensor:
    logits = logits_of(output)
    if logits is None:
        raise ValueError("fine-tuning needs scores of classes, got an output without")
    classes = target.to(logits.device).long()
    known = (classes >= 0) & (classes < logits.shape[1])
    return F.cross_entropy(logits, classes.where(known, -100))


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, over and over."""
    while True:
        count = 0
        for count, batch in enumerate(batches, 1):  # noqa: B007
            yield batch
        if not count:
            raise ValueError("fine_tuning.batches must give at least one batch, got none")


def _trained(model: nn.Module, forward: Forward, tuning: FineTuning) -> nn.Module:
    groups = parameter_groups(model, 1e-4, calibration={"lr": 10 * tuning.lr})
    optimizer = torch.optim.SGD(groups, lr=tuning.lr, momentum=0.9)
    model.train()
    batches = _endless(tuning.batches)
    with torch.enable_grad():
        for _ in range(tuning.steps):
            batch = next(batches)
            optimizer.zero_grad()
            _cross_entropy(forward(model, batch), target_in(batch)).backward()
            optimizer.step()
    return model.eval()
