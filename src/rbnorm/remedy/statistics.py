"""Statistics of the test batch in place of the running ones, in whole or in part."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm.diagnosis.meter import normalised
from rbnorm.diagnosis.passes import normalisers
from rbnorm.layers.base import input_of


@contextmanager
def mixed_statistics(
    model: nn.Module, weight: float, layers: Container[str] | None = None
) -> Iterator[None]:
    r"""Normalise in evaluation by :math:`(1-\alpha)` running and :math:`\alpha` batch statistics.

    Mean and (biased) variance are mixed, as alpha-BN does (You et al., *Test-time batch statistics
    calibration for covariate shift*, 2021); the weight 1 is what BatchNorm does in training. For
    RBN the statistics are those of :math:`z = x + w_m K(x)`. The running statistics come back on
    leaving.

    Args:
        model: The model, in evaluation mode.
        weight: :math:`\alpha`, from 0 to 1.
        layers: Names of the layers to do it in; None for all that have running statistics.
    """
    chosen = [
        layer
        for name, layer in normalisers(model).items()
        if layer.running_mean is not None and (layers is None or name in layers)
    ]
    saved = [
        (buffer, buffer.clone())
        for layer in chosen
        for buffer in (layer.running_mean, layer.running_var)
        if buffer is not None
    ]
    handles = [
        layer.register_forward_pre_hook(_mixing(layer, weight), with_kwargs=True)
        for layer in chosen
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for buffer, values in saved:
                buffer.copy_(values)


def _mixing(layer: _BatchNorm, weight: float) -> Callable[..., None]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    running = (layer.running_mean.clone(), layer.running_var.clone())

    def before(layer: _BatchNorm, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x: Tensor = input_of(args, kwargs).detach()
        if not x.numel():
            return
        with torch.no_grad():
            seen = normalised(layer, x)
            mean = seen.mean.mean(0)
            var = (seen.var + (seen.mean - mean).square()).mean(0)
            buffers = (layer.running_mean, layer.running_var)
            for buffer, kept, batch in zip(buffers, running, (mean, var), strict=True):
                assert buffer is not None
                buffer.copy_(kept.lerp(batch.to(kept), weight))

    return before


class Rebatched:
    """The same instances in the same order, in batches of another size.

    What is left for a last batch of less than half the size goes into the one before.

    Args:
        batches: Tensors, or sequences of tensors that have an instance in each row.
        size: Instances of a batch.
    """

    def __init__(self, batches: Iterable[Any], size: int) -> None:
        self.batches, self.size = batches, size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        held: tuple[Tensor, ...] | None = None
        for batch in self.batches:
            parts = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
            held = parts if held is None else tuple(map(_joined, held, parts))
            while len(held[0]) >= self.size + (self.size + 1) // 2:
                yield tuple(part[: self.size] for part in held)
                held = tuple(part[self.size :] for part in held)
        if held is not None and len(held[0]):
            yield held


def _joined(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b])
