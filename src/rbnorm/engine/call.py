"""What a call of the layer consists of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rbnorm.engine.batch import Group

Running = tuple[Tensor, Tensor]


class Vectors(NamedTuple):
    """The per-channel parameters, each (C,) or None where the layer has none."""

    weight: Tensor | None
    bias: Tensor | None
    center_weight: Tensor | None
    scale_weight: Tensor | None
    scale_bias: Tensor | None

    def to(self, dtype: torch.dtype) -> Vectors:
        """Each in this dtype."""
        return Vectors(*(v if v is None or v.dtype == dtype else v.to(dtype) for v in self))


class Options(NamedTuple):
    """What a layer is beside its vectors; functions by their codes, as the kernels take them."""

    eps: float
    restrict: int
    activation: int = 0
    slope: float = 0.0


class Call(NamedTuple):
    """The tensors, and what they mean: training normalises by the batch and moves ``running``.

    ``group`` are the processes whose batches are one; None in evaluation.
    """

    x: Tensor
    residual: Tensor | None
    p: Vectors
    running: Running | None
    training: bool
    momentum: float | Tensor
    group: Group | None = None

    def widened(self, dtype: torch.dtype) -> Call:
        """With vectors, and what evaluation normalises by, in the table dtype, without gaps."""
        x, residual, p, running, training, momentum, group = self
        if running is not None and not training:
            running = running[0].to(dtype).contiguous(), running[1].to(dtype).contiguous()
        return Call(x, residual, p.to(dtype), running, training, momentum, group)
