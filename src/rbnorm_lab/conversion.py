"""What turning a model's BatchNorm into RBN, or its RBN into BatchNorm, changes."""

import copy
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rbnorm
from rbnorm.diagnosis.passes import call, labels_of, normalisers, run, unchanged
from rbnorm.diagnosis.scores import logits_of
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm_lab.errors import first_line
from rbnorm_lab.text import Text


@dataclass(frozen=True)
class Side:
    """A model before or after.

    Attributes:
        kinds: Its normalisers, counted by class.
        parameters: Number of its parameters.
        accuracy: On the images; None without labels or a score for each of their classes.
        result: Its diagnosis.
    """

    kinds: str
    parameters: int
    accuracy: float | None
    result: rbnorm.Diagnosis


@dataclass(frozen=True)
class Conversion:
    """Before and after.

    Attributes:
        how: What was done, as the heading of a column.
        before: The model as given.
        after: The other one, or None where the model cannot be converted.
        difference: Root mean square of the difference of the outputs over that of the first.
        refusal: Why it cannot be converted.
    """

    how: Text
    before: Side
    after: Side | None = None
    difference: float | None = None
    refusal: str | None = None


def conversion(
    model: nn.Module, result: rbnorm.Diagnosis, other: nn.Module | None, batches: Iterable[Any]
) -> Conversion:
    """Compare a model with ``other``, or with its own conversion.

    Without ``other`` a copy is converted: a model with BatchNorm to RBN that computes the same, a
    model of nothing but RBN back to BatchNorm, which drops what its calibration does by instance.
    """
    how, refusal = Text("converted", "转换后"), None
    if other is None:
        try:
            how, other = _converted(model)
        except ValueError as error:
            refusal = first_line(error)
    models = [model] if other is None else [model, other]
    accuracies, difference = _scores(models, batches)
    before = _side(model, accuracies[0], result)
    if other is None:
        return Conversion(how, before, refusal=refusal)
    after = _side(other, accuracies[1], rbnorm.diagnose(other, batches))
    return Conversion(how, before, after, difference)


def _converted(model: nn.Module) -> tuple[Text, nn.Module]:
    twin = copy.deepcopy(model)
    layers = normalisers(twin).items()
    plain = {name for name, layer in layers if not isinstance(layer, _RepresentativeBatchNorm)}
    if plain:
        rbnorm.convert_batchnorm(twin, where=plain.__contains__)
        return Text("converted to RBN, not yet trained", "转换为 RBN，尚未训练"), twin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the error is measured here, on all images
        rbnorm.revert_batchnorm(twin)
    return Text("reverted to BatchNorm", "还原为 BatchNorm"), twin


def _side(model: nn.Module, accuracy: float | None, result: rbnorm.Diagnosis) -> Side:
    kinds = Counter(layer.kind for layer in result.layers)
    return Side(
        ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        sum(parameter.numel() for parameter in model.parameters()),
        accuracy,
        result,
    )


def _scores(
    models: list[nn.Module], batches: Iterable[Any]
) -> tuple[list[float | None], float | None]:
    """The accuracy of each model, and the relative difference of the scores of two, if known."""
    right, total = [0] * len(models), 0
    squares = torch.zeros(2, dtype=torch.float64)
    known = comparable = True

    def forward(_: nn.Module, batch: Any) -> list[Tensor | None]:
        return [logits_of(call(model, batch)) for model in models]

    def add(batch: Any, found: list[Tensor | None]) -> None:
        nonlocal total, known, comparable
        outputs = [scores for scores in found if scores is not None]
        if len(outputs) < len(models):
            known = comparable = False
            return
        first, last = (scores.cpu().double() for scores in (outputs[0], outputs[-1]))
        squares.add_(torch.stack([(last - first).square().sum(), first.square().sum()]))
        labels = labels_of(batch)
        if labels is None or first.ndim != 2 or labels.max() >= first.shape[1]:
            known = False
            return
        total += len(labels)
        for i, scores in enumerate(outputs):
            right[i] += int((scores.argmax(1).cpu() == labels).sum())

    together = nn.ModuleList(models)
    with unchanged(together):
        together.eval()
        run(together, batches, forward, {}, add)
    accuracies = [count / total if known and total else None for count in right]
    compared = comparable and len(models) > 1
    difference = float((squares[0] / squares[1]).sqrt()) if compared else None
    return accuracies, difference
