"""What a diagnosis says, in plain sentences."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Final

import rbnorm
from rbnorm import LayerDiagnosis

CASES: Final = {
    "mean_below": "below the running mean: representative features are removed",
    "mean_above": "above the running mean: noise is let through",
    "var_below": "below the running variance: the intensity becomes too small",
    "var_above": "above the running variance: the intensity becomes too large",
}
_OFF: Final = 0.25  # mean offset, or log variance ratio, at which running statistics are off
_APART: Final = 0.2  # share of variance between instances that centring can act on
_NOISY: Final = 0.2  # spread of the means of small batches, in standard deviations
_SMALL_BATCH: Final = 8


def findings(result: rbnorm.Diagnosis, images: int) -> list[str]:
    """Which layers, which of the four cases, how large, and what to try."""
    layers = [layer for layer in result.layers if layer.instances]
    kinds = Counter(layer.kind for layer in result.layers)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    sentences = [f"Measured on {images} images: {counted}."]
    sentences += [s for case in CASES if (s := _case(case, layers, result))]
    sentences += _broken(result)
    sentences += _small_batches(layers)
    sentences += _shift(result)
    sentences += _calibration(layers)
    sentences += _effect(result)
    return [*sentences, *advice(layers)]


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %"


def _name(layer: LayerDiagnosis) -> str:
    return layer.layer or "the only layer"


def _count(layers: Sequence[LayerDiagnosis]) -> str:
    return f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"


def _known(layers: Sequence[LayerDiagnosis], name: str) -> list[LayerDiagnosis]:
    return [layer for layer in layers if math.isfinite(layer.values.get(name, math.nan))]


def _case(case: str, layers: Sequence[LayerDiagnosis], result: rbnorm.Diagnosis) -> str | None:
    known = _known(layers, case)
    if not known:
        return None
    worst = max(known, key=lambda layer: layer[case])
    limit = (
        f"more than {result.thresholds.mean:g} running standard deviations"
        if case.startswith("mean")
        else f"by more than a factor of {math.exp(result.thresholds.log_var):.3g}"
    )
    if not worst[case]:
        return f"No pair of image and channel lies {limit} {CASES[case].split(':')[0]}."
    return (
        f"{percent(fmean(layer[case] for layer in known))} of the pairs of image and channel lie "
        f"{limit} {CASES[case]}; most in {_name(worst)}, {percent(worst[case])}."
    )


def _broken(result: rbnorm.Diagnosis) -> list[str]:
    found = []
    if result.unreached:
        found.append(f"No image reached {', '.join(result.unreached)}.")
    broken = [layer for layer in result.layers if layer.nonfinite]
    if broken:
        found.append(
            f"{_count(broken)} got activations that are not finite, first "
            f"{_name(broken[0])}; they are left out of all numbers."
        )
    return found


def _small_batches(layers: Sequence[LayerDiagnosis]) -> list[str]:
    spreads = [
        (spread.mean, _name(layer))
        for layer in layers
        for spread in layer.batch_spread
        if spread.size == _SMALL_BATCH and math.isfinite(spread.mean)
    ]
    if not spreads:
        return []
    most, where = max(spreads)
    average = fmean(value for value, _ in spreads)
    return [
        f"From one batch of {_SMALL_BATCH} to the next the batch mean varies by "
        f"{average:.2f} standard deviations, in {where} "
        f"by {most:.2f}."
    ]


def _shift(result: rbnorm.Diagnosis) -> list[str]:
    if result.shifted is None:
        return []
    ranked = [layer for layer in result.ranking() if layer["shift"] > 0][:3]
    if not ranked:
        return ["The second data set moves no layer."]
    named = ", ".join(f"{_name(layer)} ({layer['shift']:.2f})" for layer in ranked)
    return [f"The second data set moves these layers furthest, in standard deviations: {named}."]


def _calibration(layers: Sequence[LayerDiagnosis]) -> list[str]:
    found = []
    centred = _known(layers, "center_weight")
    if centred:
        shares = [
            f"{percent(fmean(layer[f'center_{name}'] for layer in centred))} {said}"
            for name, said in (
                ("removes", "remove the instance mean"),
                ("damps", "damp it"),
                ("neutral", "are BatchNorm"),
                ("amplifies", "amplify it"),
                ("reverses", "reverse it"),
            )
        ]
        before, after = (
            fmean(layer[name] for layer in _known(centred, name))
            for name in ("between_share", "between_share_centred")
        )
        found.append(f"Of the channels' centring weights {', '.join(shares)}.")
        found.append(
            f"Before centring {percent(before)} of the variance lies between images, after it "
            f"{percent(after)}."
        )
    gated = _known(layers, "gate_inert")
    if gated:
        found.append(
            f"The gate is {fmean(layer['gate_mean'] for layer in gated):.3f} on average and varies "
            f"by {fmean(layer['gate_spread'] for layer in gated):.3f} over images; in "
            f"{percent(fmean(layer['gate_inert'] for layer in gated))} of the channels it is inert "
            "and could be absorbed into gamma."
        )
    return found


def _effect(result: rbnorm.Diagnosis) -> list[str]:
    whole = {c.without: c.accuracy for c in result.counterfactuals if c.layer is None}
    if "nothing" not in whole:
        return []
    return [
        f"Without {without} in any layer the accuracy goes from {percent(whole['nothing'])} to "
        f"{percent(accuracy)}, running statistics re-estimated."
        for without, accuracy in whole.items()
        if without != "nothing"
    ]


def advice(layers: Sequence[LayerDiagnosis]) -> list[str]:
    """What is worth trying, each with the number that says so."""
    found = []
    off = [
        layer
        for layer in _known(layers, "mean_offset")
        if float(layer.per_channel["mean_offset"].abs().nanmean()) > _OFF
    ]
    if off:
        found.append(
            f"Try rbnorm.recalibrate: in {_count(off)}, the first {_name(off[0])}, "
            f"the channels' means over all images are more than {_OFF} standard deviations off "
            "the running means, so these statistics are not those of this data."
        )
    plain = [layer for layer in layers if "center_weight" not in layer.values]
    apart = [layer for layer in _known(plain, "between_share") if layer["between_share"] > _APART]
    if apart:
        most = max(apart, key=lambda layer: layer["between_share"])
        found.append(
            f"Try RBN in {_count(apart)} where more than {percent(_APART)} of the variance "
            f"lies between images, above all {_name(most)}: "
            "there centring has something to act on."
        )
    elif plain:
        found.append(
            f"In no BatchNorm layer more than {percent(_APART)} of the variance lies between "
            "images: RBN's centring has little to act on here."
        )
    noisy = [
        d for d in layers for s in d.batch_spread if s.size == _SMALL_BATCH and s.mean > _NOISY
    ]
    if noisy:
        found.append(
            f"Prefer batches of more than {_SMALL_BATCH} in training: in {_count(noisy)} the "
            f"means of such batches vary by more than {_NOISY} standard deviations."
        )
    inert = [d for d in _known(layers, "gate_inert") if d["gate_inert"] > 0.9]
    if inert:
        found.append(
            f"Try scale=False in {_count(inert)}, the first {_name(inert[0])}: "
            "their scaling is inert in more than 90.0 % of the channels."
        )
    return found
