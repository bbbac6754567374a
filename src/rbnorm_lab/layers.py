"""What the normalisation layers of a trained model do to its features."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from rbnorm_lab.records import Number, number

_NORM_LAYERS: Final = (_BatchNorm, _InstanceNorm, nn.GroupNorm)
_CALIBRATION: Final = ("center_weight", "scale_weight", "scale_bias")
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
INERT: Final = 0.05
"""A weight of the calibration that is nearer to 0 than this hardly does anything."""


@torch.no_grad()
def channel_mean_std(
    model: nn.Module, batches: Iterable[Tensor], prepare: Callable[[Tensor], Tensor]
) -> dict[str, Number]:
    """Standard deviation over channels of the channel means of every normalisation layer's output.

    The means are taken over all instances and positions, in evaluation mode; the standard deviation
    is that of the layer's channels as a population. Nothing of the activations is kept.

    Args:
        model: The trained model; its training flags are restored.
        batches: Images, batch by batch.
        prepare: Puts a batch where and how the model expects it.

    Returns:
        One number for every layer that ran, by the layer's name.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _NORM_LAYERS)}
    seen: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers.values()}

    def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        values = output.detach().transpose(0, 1).flatten(1)
        total = values.sum(1, dtype=torch.float64)
        seen[layer].append(torch.stack([total, torch.full_like(total, values.shape[1])]))

    hooks = [layer.register_forward_hook(hook) for layer in layers.values()]
    training = model.training
    model.eval()
    try:
        for images in batches:
            model(prepare(images))
    finally:
        model.train(training)
        for handle in hooks:
            handle.remove()
    found = {}
    for name, layer in layers.items():
        if seen[layer]:
            total, count = torch.stack(seen[layer]).sum(0)
            found[name] = number((total / count).std(correction=0).item())
    return found


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
