"""Statistics of the test batch in place of the running ones, in whole or in part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from rbnorm.diagnosis.meter import normalised, pooled
from rbnorm.diagnosis.passes import input_of, normalisers, unchanged


@contextmanager
def mixed_statistics(model: nn.Module, weight: float) -> Iterator[None]:
    r"""Normalise in evaluation by :math:`(1-\alpha)` running and :math:`\alpha` batch statistics.

    Mean and (biased) variance are mixed, as alpha-BN does (You et al., *Test-time batch statistics
    calibration for covariate shift*, 2021); the weight 1 is what BatchNorm does in training. For
    RBN the statistics are those of :math:`z = x + w_m K(x)`. The running statistics come back on
    leaving.

    Args:
        model: The model, in evaluation mode.
        weight: :math:`\alpha`, from 0 to 1.
    """
    layers = [m for m in normalisers(model).values() if m.running_mean is not None]
    with unchanged(model), ExitStack() as hooks:
        for layer in layers:
            mix = _mixing(layer, weight)
            hooks.enter_context(layer.register_forward_pre_hook(mix, with_kwargs=True))
        yield


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
            buffers = (layer.running_mean, layer.running_var)
            found = pooled(seen.mean, seen.var)
            for buffer, kept, batch in zip(buffers, running, found, strict=True):
                assert buffer is not None
                buffer.copy_(kept.lerp(batch.to(kept), weight))

    return before


class Rebatched:
    """The same instances in the same order, in batches of another size.

    What is left for a last batch of less than half the size goes into the one before.

    Args:
        batches: Tensors, or sequences or mappings of tensors that have an instance in each row.
        size: Instances of a batch.
    """

    def __init__(self, batches: Iterable[Any], size: int) -> None:
        self.batches, self.size = batches, size

    def __iter__(self) -> Iterator[Any]:
        held: list[Tensor] = []
        for batch in self.batches:
            parts, spec = tree_flatten(dict(batch) if isinstance(batch, Mapping) else batch)
            sizes = {len(p) if isinstance(p, Tensor) and p.ndim else None for p in parts}
            if len(sizes) != 1 or None in sizes:
                raise ValueError(
                    "batches must consist of tensors with a row for each instance to be cut to a "
                    f"size, got {type(batch).__name__} of "
                    f"{', '.join(type(p).__name__ for p in parts)}"
                )
            held = [torch.cat(pair) for pair in zip(held, parts, strict=True)] if held else parts
            while len(held[0]) >= self.size + (self.size + 1) // 2:
                yield tree_unflatten([part[: self.size] for part in held], spec)
                held = [part[self.size :] for part in held]
        if held and len(held[0]):
            yield tree_unflatten(held, spec)
