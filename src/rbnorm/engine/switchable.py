"""Training as a graph that other tools can switch to evaluation.

PT2E quantisation, in torch and torchao, turns an exported training graph into one for evaluation by
what it knows to differ between them: ``aten.batch_norm``. So a training graph that is exported has
RBN's standardisation in this form, and the calibrations around it, which are alike in both modes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rbnorm.definition import (
    STATISTICS,
    Restriction,
    Statistic,
    StatisticName,
    per_channel,
    resolve,
)
from rbnorm.elementwise import RESTRICTIONS, RestrictionName
from rbnorm.engine.tables import Vectors
from rbnorm.kernels.phases import table_dtype


def is_wanted(
    dtype: torch.dtype, running: tuple[Tensor, Tensor] | None, momentum: float | Tensor | None
) -> bool:
    """Whether a training graph is exported whose statistics ``aten.batch_norm`` can keep."""
    return (
        torch.compiler.is_exporting()
        and running is not None
        and isinstance(momentum, int | float)
        and running[0].dtype == table_dtype(dtype)
    )


def forward(
    x: Tensor,
    p: Vectors,
    running: tuple[Tensor, Tensor],
    momentum: float,
    eps: float,
    statistic: StatisticName | Statistic,
    restrict: RestrictionName | Restriction,
) -> Tensor:
    """RBN in training, with running statistics, in the dtype of these."""
    K = resolve("statistic", statistic, STATISTICS)
    R = resolve("restrict", restrict, RESTRICTIONS)
    z = x if p.center_weight is None else x + per_channel(p.center_weight, x) * K(x)
    one, zero = torch.ones_like(running[0]), torch.zeros_like(running[0])
    y = F.batch_norm(z, *running, one, zero, True, momentum, eps)
    if p.scale_weight is not None and p.scale_bias is not None:
        y = y * R(per_channel(p.scale_weight, x) * K(y) + per_channel(p.scale_bias, x))
    y = y if p.weight is None else per_channel(p.weight, x) * y
    return y if p.bias is None else y + per_channel(p.bias, x)
