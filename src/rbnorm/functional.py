"""``representative_batch_norm``: every check once, then the way that the route gives."""

from __future__ import annotations

from torch import Tensor

from rbnorm.definition import Restriction, Statistic, StatisticName
from rbnorm.elementwise import ACTIVATIONS, RESTRICTIONS, ActivationName, RestrictionName
from rbnorm.engine import autograd, layer
from rbnorm.engine.batch import Group
from rbnorm.engine.call import Call, Options, Vectors
from rbnorm.engine.checks import check, is_direct
from rbnorm.engine.literal import empty, literal
from rbnorm.engine.route import route, unrecorded
from rbnorm.kernels.backends import PORTABLE
from rbnorm.kernels.phases import Unfit, table_dtype

__all__ = ["representative_batch_norm"]

# The named restrictions and activations by their codes; a callable is not among them.
_CODES: dict[tuple[str, str | None], tuple[int, int]] = {
    (r, a): (RESTRICTIONS[r].code, ACTIVATIONS[a or "none"].code)
    for r in RESTRICTIONS
    for a in (*ACTIVATIONS, None)
}


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
    running = None if running_mean is running_var is None else (running_mean, running_var)
    group = group if training else None
    call = Call(input, residual, p, running, training, momentum, group)  # type: ignore[arg-type]
    named = statistic == "mean" and isinstance(restrict, str)
    codes = _CODES.get((restrict, activation)) if named else None  # type: ignore[arg-type]
    way, kernels = route(call, codes is not None)
    checks = eps, statistic, restrict, activation
    direct = way == "whole" and is_direct(call)
    if not direct:
        unrecorded(check, call, *checks)
        call = call.widened(table_dtype(input.dtype))
        if way == "empty":
            return empty(call)
        if codes is None or way == "switchable":
            activation = "none" if activation is None else activation
            rest = statistic, restrict, activation, negative_slope
            return literal(call, way == "switchable", eps, *rest)
    options = Options(eps, *codes, negative_slope)  # type: ignore[call-arg, misc]
    if way == "traced":
        return autograd.traced(call, options)
    while True:
        try:
            if autograd.is_recorded(call):
                at = kernels, options, call, False
                y: Tensor = autograd.Normalise.apply(*at, input, residual, *call.p)
                return y
            return layer.output(kernels, call, options)
        except Unfit:
            if direct:  # the same sentence as on every other way; kernels check faster
                check(call, *checks)
            kernels = PORTABLE
