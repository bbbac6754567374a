"""From what a pass kept to the numbers of its layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm.diagnosis.meter import LayerMeter
from rbnorm.diagnosis.result import COLUMNS, LayerDiagnosis, mean
from rbnorm.layers.base import _RepresentativeBatchNorm

_MOMENTS = ("mean", "var", "x_mean", "x_var")
NEUTRAL = 0.05  # a w_m this near to 0 is BatchNorm's, one this near to -1 removes the mean
INERT = 0.01  # a gate whose spread over instances is this share of its mean is a constant


def layer_diagnosis(name: str, meter: LayerMeter) -> LayerDiagnosis:
    """The result of one layer's pass."""
    layer = meter.layer
    channels = _channels(meter)
    values = {n: mean(channels[n]) if n in channels else torch.nan for n in COLUMNS}
    values |= {n: mean(v) for n, v in channels.items() if n not in COLUMNS}
    if "output_mean" in channels:
        del values["output_mean"]
        known = channels["output_mean"]
        values["output_mean_std"] = float(known[~known.isnan()].std(correction=0))
    if "center_weight" in channels:
        values |= regimes(channels["center_weight"])
    return LayerDiagnosis(
        layer=name,
        kind=type(layer).__name__,
        channels=layer.num_features,
        instances=meter.instances,
        calls=meter.calls,
        nonfinite=_nonfinite(meter),
        values=values,
        per_channel=channels,
    )


def _nonfinite(meter: LayerMeter) -> int:
    """Pairs whose variance is not finite; where the mean is not, the variance is not either."""
    if not meter.instances:
        return 0
    finite = meter.rows.result()[0][meter.names.index("var")]
    return meter.instances * meter.layer.num_features - int(finite.sum())


def _channels(meter: LayerMeter) -> dict[str, Tensor]:
    """Every number that a channel has, (C,)."""
    layer = meter.layer
    channels: dict[str, Tensor] = {}
    if meter.instances:
        count, means, variances = meter.rows.result()
        kept = dict(zip(meter.names, means, strict=True))
        spread = dict(zip(meter.names, variances.where(count > 1, torch.nan), strict=True))
        within = {name: kept.pop(name) for name in _MOMENTS if name in kept}
        channels |= {"between_share": share(spread["mean"], within["var"]), **kept}
        if "x_mean" in spread:  # RBN: of the input, and of what the centring made of it
            channels["between_share_centred"] = channels["between_share"]
            channels["between_share"] = share(spread["x_mean"], within["x_var"])
        if "gate" in kept:
            channels |= _gates(channels.pop("gate"), spread["gate"].sqrt(), layer)
    if isinstance(layer, _RepresentativeBatchNorm) and layer.center_weight is not None:
        channels["center_weight"] = layer.center_weight.detach().double().cpu()
    return channels


def share(between: Tensor, within: Tensor) -> Tensor:
    """The share of the variance that lies between instances; NaN where there is no variance."""
    return between / (between + within)


def _gates(gate: Tensor, spread: Tensor, layer: _BatchNorm) -> dict[str, Tensor]:
    gamma = 1.0 if layer.weight is None else layer.weight.detach().double().cpu()
    return {
        "gate_mean": gate,
        "gate_spread": spread,
        "gate_inert": (spread < INERT * gate.abs()).double().where(spread.isfinite(), torch.nan),
        "gain": gamma * gate,
    }


def regimes(w_m: Tensor) -> dict[str, float]:
    """The shares of channels in the five regimes of ``w_m``, which sum to 1."""
    inside = {
        "center_reverses": w_m < -1 - NEUTRAL,
        "center_removes": (w_m + 1).abs() <= NEUTRAL,
        "center_damps": (w_m > -1 + NEUTRAL) & (w_m < -NEUTRAL),
        "center_neutral": w_m.abs() <= NEUTRAL,
        "center_amplifies": w_m > NEUTRAL,
    }
    return {name: mean(where.double()) for name, where in inside.items()}
