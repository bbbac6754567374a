"""The static part of RBN layers into the convolutions and linear layers before them."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

from rbnorm.diagnosis.passes import run
from rbnorm.export.constant import Observed, approximate, variation
from rbnorm.export.layer import split
from rbnorm.export.watch import TOLERANCE, LayerFold, Watch, difference
from rbnorm.models.intact import forget
from rbnorm.models.report import Report, number, paragraph, table
from rbnorm.models.revert import Inputs, outputs


@dataclass(frozen=True, repr=False)
class FoldReport(Report):
    """What folding did to a model.

    Attributes:
        model: The folded copy, in evaluation mode.
        layers: What was done with each RBN layer.
        error: Largest difference of the outputs on the given inputs, relative to the largest value,
            before constants took the place of anything: rounding.
        effect: What the constants do to the outputs, in the unit of the tolerance; None without
            a tolerance.
    """

    model: nn.Module
    layers: dict[str, LayerFold]
    error: float
    effect: float | None = None

    def summary(self) -> str:
        """How many layers cost less, or nothing any more, and what that does to the outputs."""
        found = self.layers.values()
        whole = sum(layer.whole for layer in found)
        stay = sum(layer.into is None for layer in found)
        constant = sum(layer.constant for layer in found)
        text = (
            f"{whole} of {len(found)} RBN layers are folded wholly, {constant} of them with a "
            f"constant calibration; {len(found) - whole - stay} are folded but for what depends on "
            f"the instance; {stay} stay as they were"
        )
        return text if self.effect is None else f"{text}; the outputs change by {self.effect:.2%}"

    def __str__(self) -> str:
        rows = [
            (
                name or type(self.model).__name__,
                "nothing" if layer.whole else "all" if layer.into is None else "calibration",
                "yes" if layer.constant else "-",
                number(layer.effect, ".2%"),
            )
            for name, layer in self.layers.items()
        ]
        header = ("layer", "left", "constant", "effect")
        reasons = Counter(layer.reason for layer in self.layers.values() if layer.reason)
        said = [paragraph(f"{count} stay: {reason}.") for reason, count in reasons.items()]
        return "\n".join([paragraph(f"{self.summary()}."), table(header, rows), *said])


def fold(
    model: nn.Module, inputs: Inputs | list[Inputs], *, tolerance: float | None = None
) -> FoldReport:
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

    With a ``tolerance`` the outputs may change by that much: by their largest difference, relative
    to the largest deviation of an output from its mean over the inputs. A layer whose calibration
    hardly depends on the instance becomes the affine map per channel that is nearest to it on the
    inputs in least squares, and costs nothing. As many layers are replaced as the tolerance
    allows, those first that change the outputs least for their size; the report says which. That
    takes one more run of the inputs for every layer. Give images that stand for those the model
    will meet: what it does to others is not measured.

    A layer stays as it is, with a reason in the report, where it follows no Conv1d, 2d, 3d or
    Linear; where something else reads the convolution's output; where one of the two is called
    several times, has hooks, or is parametrised; without running statistics; with another statistic
    than the mean, unless constants take its place; or where the pair's output differs.

    Args:
        model: The model; it is not changed.
        inputs: A batch, a tuple of arguments, or a list of such, to run in evaluation mode. The
            first one shows how the layers are connected; errors are measured on all of them.
        tolerance: The largest change of the outputs that is allowed, 0.01 for a hundredth of what
            distinguishes one input from another; None for an exact copy, up to rounding.

    Returns:
        A :class:`FoldReport` with the folded copy in evaluation mode; it cannot be trained further.

    Raises:
        ValueError: The model has no RBN layer, or its outputs on ``inputs`` differ after folding;
            there are no inputs; the tolerance is not a positive number.
    """
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be a positive number or None, got {tolerance}")
    batches = inputs if isinstance(inputs, list) else [inputs]
    if not batches:
        raise ValueError("inputs must have at least one batch, got an empty list")
    folded = copy.deepcopy(model).eval()
    watch = Watch(folded)
    expected = [watch.run(folded, batches[0]), *(outputs(folded, b) for b in batches[1:])]
    forget(folded)
    layers = {name: layer for name, layer in watch.found.items() if layer.pair}
    seen = {n: Observed(layer.norm) for n, layer in layers.items() if not layer.outcome.whole}
    if tolerance is not None and seen:
        run(folded, batches, outputs, seen)
    for layer in layers.values():
        if layer.outcome.into is not None:
            layer.put(folded, layer.folded(split(layer.norm)))

    def found() -> list[list[Tensor]]:
        return [outputs(folded, batch) for batch in batches]

    error, effect = _check(found(), expected), None
    if tolerance is not None:
        seen = {name: observed for name, observed in seen.items() if observed.count}
        approximate(folded, layers, seen, lambda: variation(found(), expected), tolerance)
        effect = variation(found(), expected)
    outcomes = {name: layer.outcome for name, layer in watch.found.items()}
    return FoldReport(folded, outcomes, error, effect)


def _check(actual: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    """The largest difference of the outputs; ValueError where it is more than rounding."""
    worst = 0.0
    for y, wanted in zip(chain(*actual), chain(*expected), strict=True):
        error, limit = difference(y, wanted), 10 * TOLERANCE.get(wanted.dtype, 0)
        if not error <= limit:
            raise ValueError(
                f"outputs must agree after folding to {limit:g} of their largest value, got a "
                f"difference of {error:g}: the model reads its layers' parameters or outputs in a "
                "way that one run does not show"
            )
        worst = max(worst, error)
    return worst
