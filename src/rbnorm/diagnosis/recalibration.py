"""Running statistics re-estimated exactly, and accuracies without parts of the calibration."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm.diagnosis.meter import normalised
from rbnorm.diagnosis.passes import Forward, again, call, normalisers, run, unchanged
from rbnorm.diagnosis.result import Counterfactual, mean
from rbnorm.diagnosis.scores import Collector
from rbnorm.diagnosis.tally import Tally
from rbnorm.kernels.phases import positions
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm.models.originals import refuse_replaced

Model = TypeVar("Model", bound=nn.Module)

_PARTS = {"nothing": (), "centring": ("center_weight",), "scaling": ("scale_weight",)}


class _Pooled:
    """Mean and variance of everything a layer normalises."""

    def __init__(self) -> None:
        self.calls = self.count = 0
        self.tally = Tally()

    def __call__(self, layer: _BatchNorm, x: Tensor) -> None:
        """Take in one batch, as a listener of :func:`rbnorm.diagnosis.passes.run`."""
        seen = normalised(layer, x)
        if x.numel():
            self.tally.add(torch.stack([seen.mean, seen.var], 1), positions(x))
            self.calls, self.count = self.calls + 1, self.count + len(x) * positions(x)

    def check(self, name: str) -> None:
        """Refuse values that were left out since they are not finite."""
        if self.count and bool((self.tally.count < self.count).any()):
            raise ValueError(f"layer {name!r} got activations that are not finite; check the data")

    def store(self, layer: _BatchNorm) -> None:
        """Give a layer these running statistics."""
        if self.count and layer.running_mean is not None and layer.running_var is not None:
            _, (mean, within), (between, _) = self.tally.result()
            layer.running_mean.copy_(mean)
            layer.running_var.copy_((within + between) * self.count / max(self.count - 1, 1))
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(self.calls)


def recalibrate(
    model: Model,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
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
    and layers that are not reached stay as they are. Where several processes each call this, each
    has the statistics of its own batches.

    Args:
        model: The model.
        batches: As in :func:`rbnorm.diagnose`; those of training, with more than one value per
            channel.
        forward: See there.

    Returns:
        ``model`` itself, with the training flags it had.

    Raises:
        ValueError: No layer has running statistics, none was reached, ``batches`` is empty, or an
            activation is not finite. Nothing has changed then.
        RuntimeError: The model raised. Nothing has changed then.
    """
    every = normalisers(model)
    tracked = {
        name: layer
        for name, layer in every.items()
        if layer.running_mean is not None and not getattr(layer, "frozen_stats", False)
    }
    if not tracked:
        raise ValueError("model must have running statistics to re-estimate, got none")
    pooled = {name: _Pooled() for name in tracked}
    with unchanged(model):
        model.eval()
        for layer in every.values():
            layer.training = True
        run(model, batches, forward or call, pooled)
    if not any(seen.count for seen in pooled.values()):
        raise ValueError("batches must reach a normaliser with running statistics, got none there")
    for name, seen in pooled.items():
        seen.check(name)
    with torch.no_grad():
        for name, seen in pooled.items():
            seen.store(tracked[name])
    return model


def counterfactuals(
    model: nn.Module,
    batches: Iterable[Any],
    recalibration: Iterable[Any],
    *,
    forward: Forward | None = None,
) -> tuple[Counterfactual, ...]:
    """The accuracy on ``batches`` without the centring and without the scaling of all RBN layers.

    Without centring means ``w_m = 0``, without scaling ``w_v = 0``, where the gate is the constant
    ``R(w_b)``. The running statistics of all layers are re-estimated on ``recalibration`` before
    each accuracy, the one without any change too. The model is left as it was.

    Raises:
        ValueError: As :func:`recalibrate`; batches without labels that belong to the output's
            scores, or that can be iterated over only once; or a layer is pruned or parametrised, so
            that its vectors cannot be set.
    """
    for name, layer in normalisers(model).items():
        if isinstance(layer, _RepresentativeBatchNorm):
            refuse_replaced(name, layer)
    found = []
    with unchanged(model):  # a loader that begins draws a random number
        again("batches", batches)
        again("recalibration", recalibration)
        for without, names in _PARTS.items():
            twin = copy.deepcopy(model)
            layers = normalisers(twin).values()
            own = (getattr(layer, name, None) for layer in layers for name in names)
            vectors = [vector for vector in own if vector is not None]
            for vector in vectors:
                vector.data.zero_()
            if vectors or without == "nothing":
                recalibrate(twin, recalibration, forward=forward)
                collect = Collector(None)
                run(twin.eval(), batches, forward or call, {}, collect)
                right = collect.scores().score
                if not len(right):
                    raise ValueError(
                        "an accuracy needs batches of (inputs, labels) and a model that gives "
                        "(N, classes) scores, got none"
                    )
                found.append(Counterfactual(without, mean(right)))
    return tuple(found)
