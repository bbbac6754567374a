"""``representative_batch_norm``: the checks, the choice of a path, and the running statistics."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from rbnorm import autograd, definition, kernels
from rbnorm.batch import Group, Shared
from rbnorm.definition import RESTRICTIONS, STATISTICS, Restriction, Statistic, resolve
from rbnorm.kernels import fused, phases
from rbnorm.kernels.checks import ACCEPTED, DTYPES, dtype_name
from rbnorm.kernels.fused import ACTIVATIONS, Options, Vectors

__all__ = ["representative_batch_norm"]

# The names that have a closed form, as the numbers by which the ops know them.
_CHOICES: dict[tuple[str, str | None], tuple[int, int]] = {
    (restrict, activation): (i, j)
    for i, restrict in enumerate(RESTRICTIONS)
    for j, activation in enumerate(ACTIVATIONS)
}
_CHOICES |= {(restrict, None): (i, 0) for i, restrict in enumerate(RESTRICTIONS)}


def _is_direct(
    x: Tensor,
    p: Vectors,
    running: tuple[Tensor | None, Tensor | None],
    training: bool,
    momentum: float | Tensor,
) -> bool:
    """Whether the op that will run can take all this as it is, and checks it itself."""
    if x.device.type not in kernels.active().checks:
        return False
    dtype = phases.table_dtype(x.dtype)
    for vector in p:
        if vector is not None and vector.dtype is not dtype:
            return False
    mean, var = running
    if mean is None or var is None:
        return mean is var and training
    return isinstance(momentum, Tensor) or -math.inf < momentum < math.inf


def _check(
    x: Tensor, training: bool, eps: float, running_mean: Tensor | None, shared: bool
) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"input must be {ACCEPTED}, got {dtype_name(x.dtype)}")
    if x.ndim < 2:
        raise ValueError(f"input must have shape (N, C, ...), got {tuple(x.shape)}")
    if not (0 < eps < math.inf if training else 0 <= eps < math.inf):
        accepted = "positive and finite in training" if training else "non-negative and finite"
        raise ValueError(f"eps must be {accepted}, got {eps}")
    if not training and running_mean is None:
        raise ValueError("running_mean and running_var must be given in evaluation, got None")
    if training and not shared and x.shape[0] * phases.positions(x) == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.size()}"
        )


def _check_vectors(x: Tensor, vectors: dict[str, Tensor | None]) -> None:
    for name, vector in vectors.items():
        if vector is None:
            continue
        if vector.shape != x.shape[1:2]:
            raise ValueError(
                f"{name} must have shape ({x.shape[1]},) to match input of shape "
                f"{tuple(x.shape)}, got {tuple(vector.shape)}"
            )
        if vector.dtype not in DTYPES:
            raise TypeError(f"{name} must be {ACCEPTED}, got {dtype_name(vector.dtype)}")
    for first, second in (("scale_weight", "scale_bias"), ("running_mean", "running_var")):
        if (vectors[first] is None) != (vectors[second] is None):
            raise ValueError(f"{first} and {second} must be given together, got only one of them")


def _check_residual(x: Tensor, residual: Tensor | None) -> None:
    if residual is None:
        return
    if residual.shape != x.shape:
        raise ValueError(
            f"residual must have the shape of the input, {tuple(x.shape)}, "
            f"got {tuple(residual.shape)}"
        )
    if residual.dtype != x.dtype:
        raise TypeError(
            f"residual must have the dtype of the input, {dtype_name(x.dtype)}, "
            f"got {dtype_name(residual.dtype)}"
        )


def _untouched(x: Tensor, residual: Tensor | None, vectors: Vectors) -> Tensor:
    """An empty output that depends on every parameter, so that each gets a gradient of zeros."""
    y = x.clone() if residual is None else x + residual
    for vector in vectors:
        if vector is not None:
            y = y + vector.sum().to(x.dtype)
    return y


def _literal(
    x: Tensor,
    residual: Tensor | None,
    p: Vectors,
    running: autograd.Running | None,
    momentum: float | Tensor | None,
    options: tuple[float, str | Statistic, str | Restriction, str, float],
    group: Group | None,
) -> Tensor:
    """The literal path, for a statistic or a restriction without a closed form."""
    eps, statistic, restrict, activation, slope = options
    dtype, batch = phases.table_dtype(x.dtype), fused.WHOLE
    given: tuple[Tensor, Tensor] | Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    if momentum is None and running is not None:
        given = running[0].to(dtype), running[1].to(dtype)
    elif group is not None:
        batch = Shared(group, phases.positions(x))
        given = lambda z: batch.statistics(*phases.moments(z), None)[1:]  # noqa: E731
    y, E, V = definition.literal_rbn(
        x.to(dtype), *p, statistics=given, eps=eps, statistic=statistic, restrict=restrict
    )
    y = y if residual is None else y + residual
    y = fused.ACTIVATIONS[activation](y, slope)
    if momentum is not None and running is not None:
        fused.update(running, E, V, batch.size(x), momentum)
    return phases.standard(y.to(x.dtype))


def _checked(
    x: Tensor,
    residual: Tensor | None,
    vectors: Vectors,
    given: tuple[Tensor | None, Tensor | None],
    training: bool,
    momentum: float | Tensor,
    options: tuple[float, str | Statistic, str | Restriction, str, float],
    group: Group | None,
) -> Tensor:
    """Check everything, bring the vectors to the table dtype, and choose the path."""
    eps, statistic, restrict, activation, slope = options
    running_mean, running_var = given
    group = group if training else None
    _check(x, training, eps, running_mean, group is not None)
    named = vectors._asdict()
    _check_vectors(x, {**named, "running_mean": running_mean, "running_var": running_var})
    _check_residual(x, residual)
    resolve("statistic", statistic, STATISTICS)
    resolve("restrict", restrict, RESTRICTIONS)
    if not isinstance(momentum, Tensor) and not -math.inf < momentum < math.inf:
        raise ValueError(f"momentum must be a finite number, got {momentum}")
    if activation not in ACTIVATIONS:
        accepted = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation must be None or one of {accepted}, got {activation!r}")
    if x.numel() == 0 and (group is None or x.shape[1] == 0):
        return _untouched(x, residual, vectors)
    running = None if running_mean is None or running_var is None else (running_mean, running_var)
    dtype = phases.table_dtype(x.dtype)
    p = Vectors(*(v if v is None or v.dtype == dtype else v.to(dtype) for v in vectors))
    factor = momentum if training else None
    if statistic == "mean" and isinstance(restrict, str):
        choice = Options(eps, *_CHOICES[restrict, activation], slope)
        return autograd.normalise(x, residual, p, running, factor, choice, group)
    return _literal(x, residual, p, running, factor, options, group)


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
    statistic: str | Statistic = "mean",
    restrict: str | Restriction = "sigmoid",
    residual: Tensor | None = None,
    activation: str | None = None,
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
        restrict: :math:`R`: "sigmoid", "tanh", "hardsigmoid", "softsign", "identity", or a
            callable that maps a tensor to one of the same shape.
        residual: Added to :math:`y` before the activation; of the shape and dtype of ``input``.
        activation: "relu", "leaky_relu", "silu", "hardswish", or None for none. It and the
            residual are part of the second sweep, at no further pass over memory.
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
    given = (running_mean, running_var)
    if group is None and statistic == "mean" and _is_direct(input, p, given, training, momentum):
        choice = _CHOICES.get((restrict, activation))  # type: ignore[arg-type]
        if choice is not None:
            try:
                return autograd.normalise(
                    input,
                    residual,
                    p,
                    None if running_mean is None else given,  # type: ignore[arg-type]
                    momentum if training else None,
                    Options(eps, *choice, negative_slope),
                )
            except RuntimeError:
                pass  # What is wrong has a better sentence below; nothing has changed yet.
    return _checked(
        input,
        residual,
        p,
        given,
        training,
        momentum,
        (eps, statistic, restrict, activation or "none", negative_slope),
        group,
    )
