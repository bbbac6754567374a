"""The static part of RBN layers into the convolutions and linear layers before them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rbnorm.export.trial import TOLERANCE, LayerFold, Trial, difference, stays
from rbnorm.modules import rbn_layers
from rbnorm.revert import _evaluate

_Inputs = Tensor | tuple[Any, ...]


@dataclass(frozen=True)
class FoldReport:
    """What folding did to a model.

    Attributes:
        model: The folded copy, in evaluation mode.
        layers: Per RBN layer what became of it.
        error: Largest difference of the outputs on the given inputs, relative to the largest value.
    """

    model: nn.Module
    layers: dict[str, LayerFold]
    error: float


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def _run(model: nn.Module, inputs: _Inputs) -> tuple[list[Tensor], Trial]:
    trial = Trial(model)
    try:
        with trial:
            outputs = _evaluate(model, inputs)
            trial.read(outputs)
    finally:
        trial.remove()
    return outputs, trial


def fold(model: nn.Module, inputs: _Inputs) -> FoldReport:
    r"""Fold the static part of every RBN layer into the convolution or linear layer before it.

    In evaluation RBN is BatchNorm, which is an affine map per channel and folds exactly, followed
    by what depends on the instance:

    .. math::

        u = \gamma r (x - E), \quad y = g\,(u + w_m k + c) + \beta, \quad g = R(a k + b),
        \quad k = \mathrm{mean}(u)

    with constants :math:`a, b, c` per channel. The copy that is returned has the first step in the
    layer before, and a :class:`FoldedRepresentativeBatchNorm` for the second one: one reduction, a
    few numbers per instance and channel, one multiplication and addition per value. A layer with
    :math:`w_m = w_v = 0` folds wholly. The model is run once to see which convolution feeds which
    layer, and each folded pair is compared with the original on what it met there.

    A layer stays as it is, with a reason in the report, where it follows no Conv1d, 2d, 3d or
    Linear; where somebody else reads the convolution's output; where one of the two is called
    several times, has hooks, or is parametrised; without running statistics; with another statistic
    than the mean; or where the pair's output differs.

    Args:
        model: The model; it is not changed.
        inputs: A batch, or a tuple of arguments, for the trial run in evaluation mode.

    Returns:
        A :class:`FoldReport` with the folded copy in evaluation mode; it cannot be trained further.

    Raises:
        ValueError: The model has no RBN layer, or its outputs on ``inputs`` differ after folding.
    """
    folded = copy.deepcopy(model).eval()
    norms = rbn_layers(folded)
    expected, trial = _run(folded, inputs)
    layers = {}
    for name, norm in norms:
        layers[name], source, pair = trial.found.get(name, stays("was not reached by the inputs"))
        if source is None or pair is None:
            continue
        if source.calls > 1 or source.readers > 1:
            layers[name] = stays(f"follows {source.name}, whose output others use too").outcome
            continue
        _replace(folded, source.module, pair.source)
        _replace(folded, norm, pair.norm)
    return FoldReport(folded, layers, _check(_evaluate(folded, inputs), expected))


def _check(outputs: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of the outputs; ValueError where it is more than rounding."""
    worst = 0.0
    for actual, wanted in zip(outputs, expected, strict=True):
        error, limit = difference(actual, wanted), 10 * TOLERANCE.get(wanted.dtype, 0)
        if not error <= limit:
            raise ValueError(
                f"outputs must agree after folding to {limit:g} of their largest value, got a "
                f"difference of {error:g}: the model reads its layers' parameters or outputs in a "
                "way that one run does not show"
            )
        worst = max(worst, error)
    return worst
