"""What the vectors of a layer are made of, where pruning or a parametrisation took their place."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import Parameter
from torch.nn.utils import parametrize

from rbnorm.layers.options import NAMES

AFFINE = ("weight", "bias")

# Pruning, spectral_norm and weight_norm keep these, and set the vector before each forward pass.
_SUFFIXES = ("_orig", "_g", "_v")


def originals(layer: nn.Module, name: str) -> list[Parameter]:
    """The parameters that a layer trains for its ``weight``, say: itself, as a rule."""
    own = layer._parameters.get(name)
    if own is not None:
        return [own]
    if parametrize.is_parametrized(layer, name):
        parametrizations: nn.Module = layer.parametrizations[name]  # type: ignore[index,assignment]
        return list(parametrizations.parameters())
    parts = (layer._parameters.get(name + suffix) for suffix in _SUFFIXES)
    return [parameter for parameter in parts if parameter is not None]


def refuse_replaced(name: str, layer: nn.Module) -> None:
    """Raise ValueError for a layer that does not hold its vectors itself."""
    for vector in (*AFFINE, *NAMES):
        if parametrize.is_parametrized(layer, vector):
            command = f"torch.nn.utils.parametrize.remove_parametrizations(layer, {vector!r})"
        elif vector not in layer._parameters and vector + "_mask" in layer._buffers:
            command = f"torch.nn.utils.prune.remove(layer, {vector!r})"
        elif vector not in layer._parameters and originals(layer, vector):
            command = "the function that removes it"
        else:
            continue
        raise ValueError(
            f"layer {name!r} has a pruned or parametrised {vector}; make it an ordinary one first, "
            f"by {command}"
        )
