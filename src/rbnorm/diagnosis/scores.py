"""What a pass says of every instance, and intervals of means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rbnorm.diagnosis.passes import target_in

Metric = Callable[[Any, Any], Tensor]

RESAMPLES = 2000
_LEVEL = 0.95
_BLOCK = 2**22  # resampled values at a time
_SEED = 0
_CLASSES = 2  # at least: a single output is no score of a class


class Interval(NamedTuple):
    """A mean over instances with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


NOTHING = Interval(torch.nan, torch.nan, torch.nan)


class Scores(NamedTuple):
    """One pass over a data set; every tensor has an entry per instance, or none at all.

    Attributes:
        score: What the metric says, 1 or 0 for a right or wrong class; float64.
        prediction: Classes, one or one a position.
        target: What the prediction should be, likewise.
        confidence: The highest probability, averaged over positions.
        information: Mutual information of instance and prediction in nats: the entropy of the mean
            prediction less the mean entropy of predictions.
    """

    score: Tensor
    prediction: Tensor
    target: Tensor
    confidence: Tensor
    information: float


def logits_of(output: Any) -> Tensor | None:
    """The (N, K, ...) scores of classes in an output; torchvision's segmentation has "out"."""
    if isinstance(output, Mapping):
        output = output.get("out", output.get("logits"))
    output = getattr(output, "logits", output)
    usable = isinstance(output, Tensor) and output.ndim >= 2 and output.is_floating_point()
    return output if usable else None


def target_of(batch: Any, logits: Tensor | None) -> Tensor | None:
    """The target of a batch, if it is a class for each instance or position of the logits."""
    target = target_in(batch)
    if logits is None or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    fits = target.shape == logits.shape[:1] + logits.shape[2:]
    return target.to(logits.device).long() if fits else None


def _over_positions(values: Tensor, axes: int = 1) -> Tensor:
    """Means over the positions behind the first axes."""
    return values.double().reshape(*values.shape[:axes], -1).mean(axes)


class Collector:
    """Takes in the outputs of one pass, batch by batch."""

    def __init__(self, metric: Metric | None) -> None:
        self.metric = metric
        self.parts: dict[str, list[Tensor]] = {name: [] for name in Scores._fields[:-1]}
        self.mean: Tensor | float = 0.0
        self.entropy = 0.0
        self.count = 0

    def __call__(self, batch: Any, output: Any) -> None:
        """Take in one batch."""
        logits = logits_of(output)
        target = target_of(batch, logits)
        if self.metric is not None:
            self._add("score", self._measured(output, batch))
        if logits is None or not len(logits) or logits.shape[1] < _CLASSES:
            return
        p = logits.double().softmax(1)
        top, prediction = p.max(1)
        self._add("prediction", prediction.to(torch.int32))
        self._add("confidence", _over_positions(top))
        self.entropy += float(_over_positions(torch.special.entr(p).sum(1)).sum())
        self.mean = self.mean + _over_positions(p, 2).sum(0)
        self.count += len(p)
        if target is None:
            return
        self._add("target", target.to(torch.int32))
        if self.metric is None:
            valid = _over_positions((target >= 0) & (target < logits.shape[1]))
            # a prediction is one of the classes: where it is right, the target is valid
            self._add("score", _over_positions(prediction == target) / valid)

    def _measured(self, output: Any, batch: Any) -> Tensor:
        assert self.metric is not None
        score = self.metric(output, target_in(batch))
        if not isinstance(score, Tensor) or score.ndim != 1:
            given = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else repr(score)
            raise ValueError(f"metric must return one number per instance, a vector, got {given}")
        return score

    def _add(self, name: str, values: Tensor) -> None:
        wide = values if values.dtype == torch.int32 else values.double()
        self.parts[name].append(wide.detach().cpu())

    def scores(self) -> Scores:
        """The scores of the pass."""
        empty = torch.empty(0, dtype=torch.float64)
        found = {name: torch.cat(parts) if parts else empty for name, parts in self.parts.items()}
        information = torch.nan
        if self.count and isinstance(self.mean, Tensor):
            mean = self.mean / self.count
            information = float(torch.special.entr(mean).sum()) - self.entropy / self.count
        return Scores(**found, information=information)


def interval(values: Tensor) -> Interval:
    """The mean of values with its percentile bootstrap interval; instances without one left out."""
    values = values[~values.isnan()]
    if not len(values):
        return NOTHING
    generator = torch.Generator().manual_seed(_SEED)
    rows = max(1, _BLOCK // len(values))
    means = []
    for start in range(0, RESAMPLES, rows):
        shape = (min(rows, RESAMPLES - start), len(values))
        drawn = torch.randint(len(values), shape, generator=generator)
        means.append(values[drawn].mean(1))
    tail = (1 - _LEVEL) / 2
    limits = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return Interval(float(values.mean()), *limits.tolist())


def agreement(ours: Scores, other: Scores) -> float:
    """The share of instances, or of their positions, with the same prediction."""
    if not len(ours.prediction) or ours.prediction.shape != other.prediction.shape:
        return torch.nan
    return float((ours.prediction == other.prediction).double().mean())
