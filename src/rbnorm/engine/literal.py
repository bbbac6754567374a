"""The ways without a closed form: the formula as it is written, and nothing at all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rbnorm.definition import Restriction, Statistic, StatisticName, literal_rbn
from rbnorm.elementwise import ACTIVATIONS, RestrictionName
from rbnorm.engine import tables
from rbnorm.engine.batch import statistics
from rbnorm.engine.call import Call
from rbnorm.kernels import phases
from rbnorm.kernels.phases import positions, table_dtype


def empty(call: Call) -> Tensor:
    """An empty output that depends on every parameter, so that each gets a gradient of zeros."""
    x, residual = call.x, call.residual
    y = x.clone() if residual is None else x + residual
    for vector in call.p:
        if vector is not None:
            y = y + vector.sum().to(x.dtype)
    return y


def literal(
    call: Call,
    switchable: bool,
    eps: float,
    statistic: StatisticName | Statistic,
    restrict: RestrictionName | Restriction,
    activation: str,
    slope: float,
) -> Tensor:
    """The literal definition in the table dtype, and in training an update of ``running``.

    ``switchable``: standardise by ``aten.batch_norm``, which does the update.
    """
    x, residual, p, running, training, momentum, group = call
    M: int | Tensor = x.numel() // x.shape[1]

    def shared(z: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal M
        batch, E, V = statistics(*phases.moments(z), None, positions(x), group)
        M = batch.M
        return E, V

    def standardise(z: Tensor) -> Tensor:
        assert running is not None
        one, zero = torch.ones_like(running[0]), torch.zeros_like(running[0])
        return F.batch_norm(z, *running, one, zero, True, momentum, eps)  # type: ignore[arg-type]

    y, E, V = literal_rbn(
        x.to(table_dtype(x.dtype)),
        *p,
        statistics=running if switchable or not training else shared if group else None,
        eps=eps,
        statistic=statistic,
        restrict=restrict,
        standardise=standardise if switchable else None,
    )
    y = ACTIVATIONS[activation](y if residual is None else y + residual, slope)
    if training and running is not None and not switchable:
        tables.update(running, E, V, M, momentum)
    return phases.standard(y.to(x.dtype))
