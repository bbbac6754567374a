"""What RBN's layers learnt, in a few numbers."""

from typing import Final

import torch
from torch import Tensor, nn

from rbnorm_lab.records import Number, number

_CALIBRATION: Final = ("center_weight", "scale_weight", "scale_bias")
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
INERT: Final = 0.05
"""A weight of the calibration that is nearer to 0 than this hardly does anything."""


@torch.no_grad()
def calibration_summary(model: nn.Module) -> dict[str, dict[str, dict[str, Number]]]:
    """Mean, standard deviation and quantiles over channels of every calibration parameter.

    Of the two weights, the share of channels that are within :data:`INERT` of 0, too.
    """
    return {
        layer_name: {
            name: _distribution(parameter)
            | ({} if name == "scale_bias" else {"inert": _inert(parameter)})
            for name, parameter in layer.named_parameters(recurse=False)
            if name in _CALIBRATION
        }
        for layer_name, layer in model.named_modules()
        if any(isinstance(getattr(layer, name, None), Tensor) for name in _CALIBRATION)
    }


def _inert(weights: Tensor) -> float:
    return weights.abs().lt(INERT).double().mean().item()


def _distribution(values: Tensor) -> dict[str, Number]:
    values = values.detach().double().cpu()
    quantiles = torch.quantile(values, torch.tensor(_QUANTILES, dtype=torch.float64))
    return {
        "mean": number(values.mean().item()),
        "std": number(values.std(correction=0).item()),
        **{f"q{q:.2f}": number(v) for q, v in zip(_QUANTILES, quantiles.tolist(), strict=True)},
    }
