"""Running statistics re-estimated exactly, and accuracies without parts of the calibration."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm.diagnosis.meter import normalised
from rbnorm.diagnosis.passes import Forward, call, labels_of, normalisers, run, unchanged
from rbnorm.diagnosis.result import Counterfactual
from rbnorm.kernels.phases import positions
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm.models.originals import refuse_replaced

Model = TypeVar("Model", bound=nn.Module)


class Pooled:
    """Mean and variance of everything a layer normalises, merged batch by batch (Chan et al.)."""

    def __init__(self) -> None:
        self.calls = self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def __call__(self, layer: _BatchNorm, x: Tensor, _: Tensor | None) -> None:
        """Take in one batch, as a listener of :func:`rbnorm.diagnosis.passes.run`."""
        seen = normalised(layer, x)
        count = len(x) * positions(x)
        if not count:
            return
        mean = seen.mean.mean(0)
        squares = (seen.var + (seen.mean - mean).square()).sum(0) * positions(x)
        if self.count:
            share = count / (self.count + count)
            step = mean - self.mean
            mean = self.mean + step * share
            squares = self.squares + squares + step.square() * self.count * share
        self.calls, self.count = self.calls + 1, self.count + count
        self.mean, self.squares = mean, squares


def recalibrate(
    model: Model,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    layers: Container[str] | None = None,
) -> Model:
    r"""Re-estimate the running statistics of every BatchNorm and RBN layer, in place.

    One pass with the normalisers in training mode, so that each layer sees what batch statistics
    make of the layers before it, and everything else in evaluation mode. Afterwards
    ``running_mean`` is the mean and ``running_var`` the unbiased variance of *all* values the layer
    normalised (for RBN of :math:`z`), each value with the same weight, and
    ``num_batches_tracked`` the number of its calls. No momentum is involved, and how the data is
    cut into batches matters only through the layers before. An average of batch variances, as
    ``momentum=None`` gives, would leave out the spread of the batch means.

    Layers without running statistics, those whose statistics are frozen (:func:`rbnorm.freeze`),
    and layers that are not reached stay as they are. Where
    several processes each call this, each has the statistics of its own batches.

    Args:
        model: The model.
        batches: As in :func:`rbnorm.diagnose`; those of training, with more than one value per
            channel.
        forward: See there.
        layers: Names of the layers to re-estimate; the others normalise by their running
            statistics meanwhile. None for every layer.

    Returns:
        ``model`` itself, with the training flags it had.

    Raises:
        ValueError: No layer has running statistics, none was reached, ``batches`` is empty, or an
            activation is not finite. Nothing has changed then.
        RuntimeError: The model raised. Nothing has changed then.
    """
    every = {n: m for n, m in normalisers(model).items() if layers is None or n in layers}
    tracked = {
        name: layer
        for name, layer in every.items()
        if layer.running_mean is not None and not getattr(layer, "frozen_stats", False)
    }
    if not tracked:
        raise ValueError("model must have running statistics to re-estimate, got none")
    pooled = {name: Pooled() for name in tracked}
    momenta = [(layer, layer.momentum) for layer in every.values()]
    with unchanged(model):
        model.eval()
        for layer in every.values():
            layer.training = True
            layer.momentum = 0.0  # the running statistics of this pass are not the old ones'
        try:
            run(model, batches, forward or call, pooled)
        finally:
            for layer, momentum in momenta:
                layer.momentum = momentum
    _check(pooled)
    with torch.no_grad():
        for name, layer in tracked.items():
            store(layer, pooled[name])
    return model


def _check(pooled: dict[str, Pooled]) -> None:
    if not any(p.count for p in pooled.values()):
        raise ValueError("batches must reach a normaliser with running statistics, got none there")
    for name, p in pooled.items():
        if p.count and not (p.mean + p.squares).isfinite().all():
            raise ValueError(f"layer {name!r} got activations that are not finite; check the data")


def store(layer: _BatchNorm, p: Pooled) -> None:
    """Give a layer these running statistics; a caller without gradients."""
    if p.count and layer.running_mean is not None and layer.running_var is not None:
        layer.running_mean.copy_(p.mean)
        layer.running_var.copy_(p.squares / max(p.count - 1, 1))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(p.calls)


@contextmanager
def _without(vectors: list[Tensor]) -> Iterator[None]:
    saved = [vector.detach().clone() for vector in vectors]
    with torch.no_grad():
        for vector in vectors:
            vector.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for vector, values in zip(vectors, saved, strict=True):
                vector.copy_(values)


def accuracy(model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> float:
    """Share of instances whose highest score is their label's, in evaluation mode.

    Raises:
        ValueError: A batch has no labels, or the output is no (N, classes) tensor for them.
    """
    right = total = 0

    def count(batch: Any, scores: Any) -> None:
        nonlocal right, total
        labels = labels_of(batch)
        if labels is None:
            raise ValueError("an accuracy needs batches of (inputs, labels), got one without")
        if not isinstance(scores, Tensor) or scores.shape[:1] != labels.shape or scores.ndim != 2:
            raise ValueError("an accuracy needs a model that gives (N, classes) scores")
        right += int((scores.argmax(1) == labels.to(scores.device)).sum())
        total += len(labels)

    with unchanged(model):
        model.eval()
        run(model, batches, forward or call, {}, count)
    return right / total if total else torch.nan


def changes(model: nn.Module) -> list[tuple[str | None, str, list[Tensor]]]:
    """What a counterfactual can leave out: layer, part of the calibration, what is then zero.

    Raises:
        ValueError: A layer is pruned or parametrised, so that its vectors cannot be set.
    """
    for name, layer in normalisers(model).items():
        if isinstance(layer, _RepresentativeBatchNorm):
            refuse_replaced(name, layer)
    found: list[tuple[str | None, str, list[Tensor]]] = [(None, "nothing", [])]
    for without, parameter in (("centring", "center_weight"), ("scaling", "scale_weight")):
        vectors = {
            name: vector
            for name, layer in normalisers(model).items()
            if isinstance(layer, _RepresentativeBatchNorm)
            and (vector := getattr(layer, parameter)) is not None
        }
        if vectors:
            found.append((None, without, list(vectors.values())))
        found += [(name, without, [vector]) for name, vector in vectors.items()]
    return found


def counterfactuals(
    model: nn.Module,
    batches: Iterable[Any],
    recalibration: Iterable[Any],
    *,
    forward: Forward | None = None,
) -> tuple[Counterfactual, ...]:
    """The accuracy on ``batches`` without each calibration of each RBN layer, and of all.

    Without centring means ``w_m = 0``, without scaling ``w_v = 0``, where the gate is the constant
    ``R(w_b)``. The running statistics of all layers are re-estimated on ``recalibration`` before
    each accuracy, the one without any change too. The model is left as it was.

    Raises:
        ValueError: As :func:`accuracy` and :func:`recalibrate`, or batches that can be iterated
            over only once.
    """
    for name, given in (("batches", batches), ("recalibration", recalibration)):
        if iter(given) is given:
            raise ValueError(
                f"{name} must be something to iterate over many times for counterfactuals, such "
                f"as a list or a DataLoader, got {type(given).__name__}"
            )
    found = []
    with unchanged(model):
        for layer, without, zeroed in changes(model):
            with _without(zeroed):
                recalibrate(model, recalibration, forward=forward)
                found.append(
                    Counterfactual(layer, without, accuracy(model, batches, forward=forward))
                )
    return tuple(found)
