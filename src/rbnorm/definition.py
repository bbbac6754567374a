"""The literal definition of Representative Batch Normalization, in ordinary differentiable PyTorch.

Every line below is one formula of the paper. It is the oracle of all tests, and the path taken
when an instance statistic or a restriction has no closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from rbnorm.elementwise import RESTRICTIONS, RestrictionName

__all__ = ["RESTRICTIONS", "STATISTICS", "literal_rbn", "per_channel", "resolve"]

StatisticName = Literal["mean", "max", "min", "std"]
Statistic = Callable[[Tensor], Tensor]
Restriction = Callable[[Tensor], Tensor]


def _per_instance(reduce: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Statistic:
    """Reduce all positions of (N, C, ...) to one; an (N, C) input has a single position."""

    def statistic(x: Tensor) -> Tensor:
        positions = x if x.ndim > 2 else x.unsqueeze(-1)
        return reduce(positions, tuple(range(2, positions.ndim))).reshape(
            x.shape[:2] + (1,) * (x.ndim - 2)
        )

    return statistic


STATISTICS: dict[str, Statistic] = {
    "mean": _per_instance(lambda x, dim: x.mean(dim)),
    "max": _per_instance(lambda x, dim: x.amax(dim)),
    "min": _per_instance(lambda x, dim: x.amin(dim)),
    "std": _per_instance(lambda x, dim: x.std(dim, correction=0)),
}


def resolve(
    kind: str,
    choice: str | Callable[[Tensor], Tensor],
    table: Mapping[str, Callable[[Tensor], Tensor]],
) -> Callable[[Tensor], Tensor]:
    """Look up a statistic or restriction by name; a callable stands for itself."""
    if isinstance(choice, str) and choice in table:
        return table[choice]
    # A module's parameters would be neither trained nor moved nor saved with the layer.
    stateful = isinstance(choice, nn.Module) and next(choice.parameters(), None) is not None
    if not isinstance(choice, str) and callable(choice) and not stateful:
        return choice
    raise ValueError(
        f"{kind} must be one of {', '.join(map(repr, table))} or a callable, "
        f"got {choice!r}{' with parameters' if stateful else ''}"
    )


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """View a (C,) vector so that it broadcasts against ``x`` of shape (N, C, ...)."""
    return vector.reshape((1, -1) + (1,) * (x.ndim - 2))


def _calibration(kind: str, value: object, accepted: torch.Size, exact: bool) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{kind} must return a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{kind} must return real floating numbers, got {value.dtype}")
    fits = value.ndim <= len(accepted) and all(
        size == wanted or (size == 1 and not exact)
        for size, wanted in zip(reversed(value.shape), reversed(accepted), strict=False)
    )
    if not fits or (exact and value.ndim != len(accepted)):
        relation = "has the shape" if exact else "broadcasts against the shape"
        raise ValueError(
            f"{kind} must return a tensor that {relation} {tuple(accepted)}, "
            f"got {tuple(value.shape)}"
        )
    return value


def literal_rbn(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    center_weight: Tensor | None = None,
    scale_weight: Tensor | None = None,
    scale_bias: Tensor | None = None,
    *,
    statistics: tuple[Tensor, Tensor] | Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    eps: float = 1e-5,
    statistic: StatisticName | Statistic = "mean",
    restrict: RestrictionName | Restriction = "sigmoid",
    standardise: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Normalise ``x`` exactly as the paper writes it.

    .. math::

        z = x + w_m K(x), \quad o = \frac{z - E}{\sqrt{V + \epsilon}}, \quad
        y = \gamma\, R(w_v K(o) + w_b)\, o + \beta

    where :math:`E, V` are the mean and biased variance of :math:`z` over all axes but the channel.

    Args:
        x: Input of shape (N, C, ...), any floating dtype; everything is computed in it.
        weight: :math:`\gamma` of shape (C,), or None for 1.
        bias: :math:`\beta` of shape (C,), or None for 0.
        center_weight: :math:`w_m` of shape (C,), or None for no centring calibration.
        scale_weight: :math:`w_v` of shape (C,), or None for no scaling calibration.
        scale_bias: :math:`w_b` of shape (C,); given exactly when ``scale_weight`` is.
        statistics: :math:`(E, V)` of shape (C,) to use in place of the batch's (evaluation), or a
            function that finds them for :math:`z`.
        eps: :math:`\epsilon`.
        statistic: :math:`K`, a name in ``STATISTICS`` or a callable on ``x``.
        restrict: :math:`R`, a name in :mod:`rbnorm.elementwise` or an elementwise callable.
        standardise: Gives :math:`o` for :math:`z` in another way than by ``statistics``.

    Returns:
        ``y`` of the shape of ``x``, and the :math:`E` and :math:`V` that were used, each (C,).

    Source: Gao et al., *Representative Batch Normalization with Feature Calibration*, CVPR 2021.
    """
    K = resolve("statistic", statistic, STATISTICS)
    R = resolve("restrict", restrict, RESTRICTIONS)

    def instance(features: Tensor) -> Tensor:
        return _calibration("statistic", K(features), features.shape, exact=False)

    z = x if center_weight is None else x + per_channel(center_weight, x) * instance(x)
    if callable(statistics):
        E, V = statistics(z)
    else:
        axes = (0, *range(2, x.ndim))
        E, V = statistics or (z.mean(axes), z.var(axes, correction=0))
    if standardise is None:
        o = (z - per_channel(E, x)) / torch.sqrt(per_channel(V, x) + eps)
    else:
        o = standardise(z)
    if scale_weight is not None and scale_bias is not None:
        s = per_channel(scale_weight, x) * instance(o) + per_channel(scale_bias, x)
        o = o * _calibration("restrict", R(s), s.shape, exact=True)
    y = o if weight is None else per_channel(weight, x) * o
    return (y if bias is None else y + per_channel(bias, x)), E, V
