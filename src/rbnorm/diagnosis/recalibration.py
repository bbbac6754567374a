"""Running statistics re-estimated exactly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm.diagnosis.meter import normalised
from rbnorm.diagnosis.passes import Forward, call, normalisers, run, unchanged
from rbnorm.diagnosis.tally import Tally
from rbnorm.kernels.phases import positions
from rbnorm.layers.base import Model


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
        """Refuse values that are not finite, which the tally leaves out."""
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
        raise ValueError("batches must reach a normaliser with running statistics, but reach none")
    for name, seen in pooled.items():
        seen.check(name)
    with torch.no_grad():
        for name, seen in pooled.items():
            seen.store(tracked[name])
    return model
