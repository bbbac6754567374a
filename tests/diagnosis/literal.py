"""The diagnosis computed literally, in float64, from everything a layer saw at once."""

import math

import torch
from torch import nn

from rbnorm.definition import RESTRICTIONS, STATISTICS


def seen(model: nn.Module, layer: nn.Module, batches) -> torch.Tensor:
    """All inputs of a layer in evaluation mode, as (N, C, L)."""
    inputs = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].double()))
    training = model.training
    with torch.no_grad():
        for batch in batches:
            model.eval()(batch)
    handle.remove()
    model.train(training)
    return torch.cat([x.flatten(2) if x.ndim > 2 else x.unsqueeze(2) for x in inputs])


def vector(layer: nn.Module, name: str, default: float) -> torch.Tensor:
    value = getattr(layer, name, None)
    value = torch.full((layer.num_features,), default) if value is None else value
    return value.detach().double()


def statistics(layer: nn.Module, x: torch.Tensor):
    """Every column as (C,), from the inputs (N, C, L)."""
    calibrated = hasattr(layer, "calibration")
    K = STATISTICS[layer.calibration.statistic] if calibrated else STATISTICS["mean"]
    z = x + vector(layer, "center_weight", 0)[:, None] * K(x)
    sigma2 = layer.running_var.double() + layer.eps
    mu = layer.running_mean.double()
    offset = (z.mean(2) - mu) / sigma2.sqrt()
    ratio = ((z.var(2, correction=0) + layer.eps) / sigma2).log()
    found = {
        "mean_offset": offset.mean(0),
        "log_var_ratio": ratio.mean(0),
        "mean_below": (offset < -0.5).double().mean(0),
        "mean_above": (offset > 0.5).double().mean(0),
        "var_below": (ratio < -math.log(2)).double().mean(0),
        "var_above": (ratio > math.log(2)).double().mean(0),
        "between_share": share(x),
    }
    o = (z - mu[:, None]) / sigma2.sqrt()[:, None]
    gate = torch.ones_like(x[:, :, :1])
    if calibrated:
        found["between_share_centred"] = share(z)
        s = vector(layer, "scale_weight", 0)[:, None] * K(o)
        gate = RESTRICTIONS[layer.calibration.restrict](s + vector(layer, "scale_bias", 0)[:, None])
        found["gate_mean"] = gate.mean((0, 2))
        found["gate_spread"] = gate[:, :, 0].std(0, correction=0)
        found["gain"] = vector(layer, "weight", 1) * found["gate_mean"]
    y = vector(layer, "weight", 1)[:, None] * gate * o + vector(layer, "bias", 0)[:, None]
    found["output_mean"] = y.mean((0, 2))
    return found


def share(x: torch.Tensor) -> torch.Tensor:
    between = x.mean(2).var(0, correction=0)
    return between / (between + x.var(2, correction=0).mean(0))
