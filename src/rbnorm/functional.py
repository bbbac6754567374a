"""``representative_batch_norm``: the checks, the choice of a path, and the running statistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rbnorm import closed_form, reference
from rbnorm.closed_form import Vectors
from rbnorm.ops import portable
from rbnorm.reference import RESTRICTIONS, STATISTICS, Restriction, Statistic, resolve

__all__ = ["representative_batch_norm"]

_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_ACCEPTED = "float16, bfloat16, float32 or float64"


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check(x: Tensor, training: bool, eps: float, running_mean: Tensor | None) -> None:
    if x.dtype not in _DTYPES:
        raise TypeError(f"input must be {_ACCEPTED}, got {_dtype_name(x)}")
    if x.ndim < 2:
        raise ValueError(f"input must have shape (N, C, ...), got {tuple(x.shape)}")
    if not (0 < eps < math.inf if training else 0 <= eps < math.inf):
        accepted = "positive and finite in training" if training else "non-negative and finite"
        raise ValueError(f"eps must be {accepted}, got {eps}")
    if not training and running_mean is None:
        raise ValueError("running_mean and running_var must be given in evaluation, got None")
    if training and x.shape[0] * portable.positions(x) == 1:
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
        if vector.dtype not in _DTYPES:
            raise TypeError(f"{name} must be {_ACCEPTED}, got {_dtype_name(vector)}")
    for first, second in (("scale_weight", "scale_bias"), ("running_mean", "running_var")):
        if (vectors[first] is None) != (vectors[second] is None):
            raise ValueError(f"{first} and {second} must be given together, got only one of them")


def _untouched(x: Tensor, vectors: Vectors) -> Tensor:
    """An empty output that depends on every parameter, so that each gets a gradient of zeros."""
    y = x.clone()
    for vector in vectors:
        if vector is not None:
            y = y + vector.sum().to(x.dtype)
    return y


def _normalise(
    x: Tensor,
    p: Vectors,
    running: tuple[Tensor, Tensor] | None,
    eps: float,
    statistic: str | Statistic,
    restrict: str | Restriction,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the path; returns y and the E and V that standardised it."""
    dtype = portable.table_dtype(x.dtype)
    p = Vectors(*(vector if vector is None else vector.to(dtype) for vector in p))
    if running is not None:
        running = running[0].to(dtype), running[1].to(dtype)
    if statistic == "mean" and isinstance(restrict, str):
        return closed_form.normalise(x, p, running, eps, restrict)
    y, E, V = reference.representative_batch_norm(
        x.to(dtype), *p, statistics=running, eps=eps, statistic=statistic, restrict=restrict
    )
    return portable.standard(y.to(x.dtype)), E, V


def _update(running: Tensor, batch: Tensor, momentum: float | Tensor) -> None:
    if isinstance(momentum, Tensor):
        momentum = momentum.to(running.dtype)
    running.lerp_(batch.detach().to(running.dtype), momentum)


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
) -> Tensor:
    r"""Representative Batch Normalization of a batch; the counterpart of ``F.batch_norm``.

    .. math::

        z = x + w_m K(x), \quad o = \frac{z - E}{\sqrt{V + \epsilon}}, \quad
        y = \gamma\, R(w_v K(o) + w_b)\, o + \beta

    where :math:`K` is a statistic of one instance (the mean over its positions by default),
    :math:`R` a restricting function (sigmoid by default), and :math:`E, V` are the mean and biased
    variance of :math:`z` per channel over the batch in training, or ``running_mean`` and
    ``running_var`` in evaluation.

    The default statistic with a named restriction runs in closed form: one reduction and one
    affine sweep over the input, as BatchNorm, with its own backward. Another statistic, or a
    callable restriction, takes the literal path of :mod:`rbnorm.reference`, which keeps several
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

    Returns:
        :math:`y`, with the shape and dtype of ``input``; contiguous, or channels_last if it is.

    Raises:
        ValueError: A wrong shape, an unknown name, a bad ``eps``, a single value per channel in
            training, or a callable's result of the wrong shape. No running statistic has changed.
        TypeError: A dtype that is not real floating point.

    Source: Gao et al., *Representative Batch Normalization with Feature Calibration*, CVPR 2021;
    the closed form and its backward are this project's.
    """
    vectors = Vectors(weight, bias, center_weight, scale_weight, scale_bias)
    _check(input, training, eps, running_mean)
    _check_vectors(
        input, {**vectors._asdict(), "running_mean": running_mean, "running_var": running_var}
    )
    resolve("statistic", statistic, STATISTICS)
    resolve("restrict", restrict, RESTRICTIONS)
    if not isinstance(momentum, Tensor) and not math.isfinite(momentum):
        raise ValueError(f"momentum must be a finite number, got {momentum}")
    if input.numel() == 0:
        return _untouched(input, vectors)
    given = None if running_mean is None or running_var is None else (running_mean, running_var)
    y, E, V = _normalise(input, vectors, None if training else given, eps, statistic, restrict)
    if training and given is not None:
        M = input.numel() // input.shape[1]
        _update(given[0], E, momentum)
        _update(given[1], V * (M / (M - 1)), momentum)
    return y
