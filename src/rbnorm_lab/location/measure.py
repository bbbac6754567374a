"""What re-estimating the statistics of single layers, and of chosen ones, wins."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from torch import nn

import rbnorm
from rbnorm.diagnosis.passes import call, normalisers, run, unchanged
from rbnorm.diagnosis.recalibration import Pooled, store
from rbnorm.remedy import named_layers, own_shifts
from rbnorm.remedy.scores import Collector
from rbnorm_lab.records import number

SIGNALS: Final = ("own_shift", "shift", "cases", "between_share")
"""What might tell the layers worth re-estimating: see :func:`signals`."""

_CASES: Final = ("mean_below", "mean_above", "var_below", "var_above")
_DRAWS: Final = 5
_SEED: Final = 0

Measured = tuple[float, float]
"""Accuracy and cross-entropy."""


def signals(
    model: nn.Module, first: Iterable[Any], second: Iterable[Any]
) -> dict[str, dict[str, float]]:
    """For every layer what the diagnosis says before any label is looked at.

    ``own_shift`` is how far the second data set moves the layer with the layers before it repaired
    (:func:`rbnorm.remedy.own_shifts`), ``shift`` how far it moves it in the unchanged model,
    ``cases`` the sum of the shares of the four cases and ``between_share`` the share of variance
    between instances, both on the second data set.
    """
    own = own_shifts(model, first, second)
    diagnosed = rbnorm.diagnose(model, first, shifted=second)
    assert diagnosed.shifted is not None
    return {
        name: {
            "own_shift": own[name],
            "shift": diagnosed[name]["shift"],
            "cases": sum(diagnosed.shifted[name][case] for case in _CASES),
            "between_share": diagnosed.shifted[name]["between_share"],
        }
        for name in own
    }


def measured(model: nn.Module, batches: Iterable[Any]) -> Measured:
    """Accuracy and cross-entropy in evaluation mode."""
    collect = Collector(None)
    with unchanged(model):
        model.eval()
        run(model, batches, call, {}, collect)
    scores = collect.scores()
    return float(scores.score.mean()), float(scores.loss.mean())


def re_estimated(model: nn.Module, batches: Iterable[Any], layers: Sequence[str]) -> Measured:
    """The same after the statistics of these layers were re-estimated on the same images."""
    with unchanged(model):
        rbnorm.recalibrate(model, batches, layers=layers)
        return measured(model, batches)


def each_re_estimated(
    model: nn.Module, batches: Iterable[Any], layers: Iterable[str]
) -> Iterator[tuple[str, Measured]]:
    """The same for every layer alone, from one pass for the statistics of all.

    What reaches a layer does not depend on its own statistics, so in the unchanged model each layer
    already sees what it sees when it is the only one to be re-estimated.
    """
    pooled = {name: Pooled() for name in layers}
    with unchanged(model):
        model.eval()
        run(model, batches, call, pooled)
    every = normalisers(model)
    for name, statistics in pooled.items():
        with unchanged(model):
            store(every[name], statistics)
            after = measured(model, batches)
        yield name, after


def location(
    model: nn.Module, first: Iterable[Any], second: Iterable[Any], condition: str
) -> list[dict[str, Any]]:
    """One record for every layer, and one for every choice of layers.

    Args:
        model: A network with running statistics.
        first: Batches of images and labels like those of training.
        second: Batches of images and labels of another kind.
        condition: Name of that kind.

    Returns:
        Records of kind "layer", with the signals and what re-estimating that layer alone wins in
        accuracy and in cross-entropy; and of kind "choice": the named layers, all layers, the same
        number of layers by each signal, and the same number drawn at random five times.
    """
    found = signals(model, first, second)
    base = measured(model, second)
    records: list[dict[str, Any]] = [
        {
            "kind": "layer",
            "condition": condition,
            "layer": name,
            "depth": depth,
            **{signal: number(value) for signal, value in found[name].items()},
            **_gain(base, after),
        }
        for depth, (name, after) in enumerate(each_re_estimated(model, second, found))
    ]
    clean = measured(model, first)
    for choice, layers in _choices(found).items():
        records.append(
            {
                "kind": "choice",
                "condition": condition,
                "choice": choice,
                "layers": list(layers),
                "clean_accuracy": clean[0],
                "accuracy": base[0],
                **_gain(base, re_estimated(model, second, layers)),
            }
        )
    return records


def _gain(base: Measured, after: Measured) -> dict[str, float]:
    return {"gain": after[0] - base[0], "loss_gain": base[1] - after[1]}


def _choices(found: dict[str, dict[str, float]]) -> dict[str, tuple[str, ...]]:
    names = tuple(found)
    named = named_layers({name: values["own_shift"] for name, values in found.items()})
    count = max(1, len(named))
    chosen = {"named": named or names[:1], "all": names}
    for signal in SIGNALS[1:]:
        ranked = sorted(names, key=lambda name: -found[name][signal])
        chosen[signal] = tuple(ranked[:count])
    draw = random.Random(_SEED)
    for i in range(_DRAWS):
        chosen[f"random {i}"] = tuple(draw.sample(names, count))
    return chosen
