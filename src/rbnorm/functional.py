"""``representative_batch_norm``: every check once, one choice of path, the running statistics."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from rbnorm import definition
from rbnorm.definition import STATISTICS, Restriction, Statistic, StatisticName, resolve
from rbnorm.elementwise import ACTIVATIONS, RESTRICTIONS, ActivationName, RestrictionName
from rbnorm.engine import autograd, switchable, tables
from rbnorm.engine import batch as batches
from rbnorm.engine.autograd import Running
from rbnorm.engine.batch import Group
from rbnorm.engine.tables import Options, Vectors
from rbnorm.kernels import active, phases
from rbnorm.kernels.checks import check_input, check_numbers, check_tensors, check_written
from rbnorm.kernels.phases import positions, table_dtype

__all__ = ["representative_batch_norm"]

# The named restrictions and activations by their codes; a callable is not among them.
_CODES: dict[tuple[str | Restriction, str], tuple[int, int]] = {
    (r, a): (RESTRICTIONS[r].code, ACTIVATIONS[a].code) for r in RESTRICTIONS for a in ACTIVATIONS
}


def _is_direct(
    x: Tensor,
    p: Vectors,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float | Tensor,
) -> bool:
    """Whether an op that checks what it is given can take all this as it is."""
    dtype = table_dtype(x.dtype)
    for vector in p:
        if vector is not None and vector.dtype is not dtype:
            return False
    if mean is None or var is None:
        return mean is var and training
    if not (mean.dtype is var.dtype is dtype and mean.is_contiguous() and var.is_contiguous()):
        return False
    if training and (mean.requires_grad or var.requires_grad):
        return False
    return isinstance(momentum, Tensor) or -math.inf < momentum < math.inf


def _check(
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
    statistic: StatisticName | Statistic,
    restrict: RestrictionName | Restriction,
    activation: str,
    group: Group | None,
) -> None:
    """Raise for whatever no path takes; nothing has changed yet."""
    check_input("input", x)
    others = {**p._asdict(), "running_mean": mean, "running_var": var, "residual": residual}
    check_tensors("input", x, others, exact=False)
    if not training and mean is None:
        raise ValueError("running_mean and running_var must be given in evaluation, got None")
    if training:
        check_written("input", x, others, memory=not autograd.is_traced())
    check_numbers(x, training, eps, momentum, shared=group is not None)
    resolve("statistic", statistic, STATISTICS)
    resolve("restrict", restrict, RESTRICTIONS)
    if activation not in ACTIVATIONS:
        accepted = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation must be None or one of {accepted}, got {activation!r}")


def _empty(x: Tensor, residual: Tensor | None, vectors: Vectors) -> Tensor:
    """An empty output that depends on every parameter, so that each gets a gradient of zeros."""
    y = x.clone() if residual is None else x + residual
    for vector in vectors:
        if vector is not None:
            y = y + vector.sum().to(x.dtype)
    return y


def _end(y: Tensor, residual: Tensor | None, activation: str, slope: float) -> Tensor:
    return ACTIVATIONS[activation](y if residual is None else y + residual, slope)


def _literal(
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: Running | None,
    momentum: float | Tensor | None,
    eps: float,
    statistic: StatisticName | Statistic,
    restrict: RestrictionName | Restriction,
    activation: str,
    slope: float,
    group: Group | None,
) -> Tensor:
    """The literal path, for a statistic or a restriction without a closed form."""
    dtype, M = table_dtype(x.dtype), x.numel() // x.shape[1]
    size: list[int | Tensor] = [M]

    def shared(z: Tensor) -> tuple[Tensor, Tensor]:
        batch, E, V = batches.statistics(*phases.moments(z), None, positions(x), group)
        size[0] = batch.M
        return E, V

    statistics = None if group is None else shared
    if momentum is None and running is not None:
        statistics = running[0].to(dtype), running[1].to(dtype)  # type: ignore[assignment]
    y, E, V = definition.literal_rbn(
        x.to(dtype), *p, statistics=statistics, eps=eps, statistic=statistic, restrict=restrict
    )
    y = _end(y, residual, activation, slope)
    if momentum is not None and running is not None:
        tables.update(running, E, V, size[0], momentum)
    return phases.standard(y.to(x.dtype))


def representative_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    center_weight: Tensor | None = None,
    scale_weight: Tensor | None = None,
    scale_bias: Tensor | None = None,
    statistic: StatisticName | Statistic = "mean",
    restrict: RestrictionName | Restriction = "sigmoid",
    residual: Tensor | None = None,
    activation: ActivationName | None = None,
    negative_slope: float = 0.01,
    group: Group | None = None,
) -> Tensor:
    r"""Representative Batch Normalization of a batch; the counterpart of ``F.batch_norm``.

    .. math::

        z = x + w_m K(x), \quad o = \frac{z - E}{\sqrt{V + \epsilon}}, \quad
        y = \gamma\, R(w_v K(o) + w_b)\, o + \beta

    where :math:`K` is a statistic of one instance (the mean over its positions by default),
    :math:`R` a restricting function (sigmoid by default), and :math:`E, V` are the mean and biased
    variance of :math:`z` per channel over the batch in training, or ``running_mean`` and
    ``running_var`` in evaluation.

    With ``residual`` and ``activation`` the result is ``act(y + residual)``, rounded once.

    The default statistic with a named restriction runs in closed form: one reduction and one
    affine sweep over the input, as BatchNorm, with its own backward. Another statistic, or a
    callable restriction, takes the literal path of :mod:`rbnorm.definition`, which keeps several
    activations alive. Both differentiate twice. Statistics are taken in float32 (float64 for a
    float64 input) and the output has the dtype of the input, which is never modified; autocast
    changes nothing.

    Args:
        input: :math:`x` of shape (N, C) or (N, C, ...), floating. An empty batch gives an empty
            output, zero gradients, and leaves the running statistics alone.
        running_mean: Shape (C,); in training updated in place, ``(1 - f) old + f E``.
        running_var: Shape (C,); in training updated with the unbiased variance of :math:`z`.
        weight: :math:`\gamma` of shape (C,), or None for 1.
        bias: :math:`\beta` of shape (C,), or None for 0.
        training: Normalise by the batch, and update the running statistics when they are given.
        momentum: The factor f of the running update.
        eps: :math:`\epsilon`; positive in training, not negative in evaluation.
        center_weight: :math:`w_m` of shape (C,), or None to leave out the centring calibration.
        scale_weight: :math:`w_v` of shape (C,), or None to leave out the scaling calibration.
        scale_bias: :math:`w_b` of shape (C,); given exactly when ``scale_weight`` is.
        statistic: :math:`K`: "mean", "max", "min", "std" (biased), or a callable that maps a
            tensor of the input's shape to one that broadcasts against it.
        restrict: :math:`R`: a name in :data:`rbnorm.elementwise.RESTRICTIONS`, or a callable that
            maps a tensor to one of the same shape.
        residual: Added to :math:`y` before the activation; of the shape and dtype of ``input``.
        activation: A name in :data:`rbnorm.elementwise.ACTIVATIONS`, or None. It and the residual
            are part of the second sweep, at no further pass over memory.
        negative_slope: Of "leaky_relu".
        group: Processes whose batches are one in training, each of which makes this call, be its
            own batch empty: :class:`rbnorm.SyncRepresentativeBatchNorm`.

    Returns:
        The result, with the shape and dtype of ``input``; contiguous, or channels_last if it is.

    Raises:
        ValueError: A wrong shape, an unknown name, a bad ``eps``, a single value per channel in
            training, or a callable's result of the wrong shape. No running statistic has changed.
        TypeError: A dtype that is not real floating point.

    Source: Gao et al., *Representative Batch Normalization with Feature Calibration*, CVPR 2021;
    the closed form and its backward are this project's.
    """
    p = Vectors(weight, bias, center_weight, scale_weight, scale_bias)
    mean, var, x = running_mean, running_var, input
    factor = momentum if training else None
    running = None if mean is None or var is None else (mean, var)
    group = group if training else None
    activation = "none" if activation is None else activation
    closed = isinstance(restrict, str) and statistic == "mean"
    codes = _CODES.get((restrict, activation)) if closed else None
    traced = autograd.is_traced()
    arguments = (
        x, residual, p, mean, var, training, momentum, eps, statistic, restrict, activation, group,
    )  # fmt: skip
    kernels = active(x.device.type)
    direct = kernels.whole is not None and not traced and group is None and x.numel() > 0
    if codes is not None and direct and _is_direct(x, p, mean, var, training, momentum):
        options = Options(eps, *codes, negative_slope)
        try:
            return autograd.normalise(x, residual, p, running, factor, options, kernels)
        except RuntimeError:
            _check(*arguments)  # the op checks at less cost, but these are the words of every path
            raise
    with nullcontext() if torch.compiler.is_compiling() else autograd.unrecorded():
        _check(*arguments)
        empty = x.numel() == 0 and (group is None or x.shape[1] == 0)
    if empty:
        return _empty(x, residual, p)
    dtype = table_dtype(x.dtype)
    p = Vectors(*(v if v is None or v.dtype == dtype else v.to(dtype) for v in p))
    if group is None and switchable.is_wanted(x.dtype, running, factor):
        y = switchable.forward(x.to(dtype), p, running, factor, eps, statistic, restrict)  # type: ignore[arg-type]
        return _end(y, residual, activation, negative_slope).to(x.dtype)
    if codes is None:
        return _literal(
            x, residual, p, running, factor, eps, statistic, restrict, activation, negative_slope,
            group,
        )  # fmt: skip
    if not training and running is not None:
        running = running[0].to(dtype).contiguous(), running[1].to(dtype).contiguous()
    options = Options(eps, *codes, negative_slope)
    return autograd.normalise(
        x, residual, p, running, factor, options, None if traced else kernels, group
    )
