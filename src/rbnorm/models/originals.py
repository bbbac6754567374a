"""What the vectors of a layer are made of, where pruning or a parametrisation took their place."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Parameter
from torch.nn.utils import parametrize

from rbnorm.layers.options import AFFINE, NAMES

# Pruning, spectral_norm and weight_norm keep these, and set the vector before each forward pass.
_SUFFIXES = ("_orig", "_g", "_v")


def originals(layer: nn.Module, name: str) -> list[Parameter]:
    """The parameters from which a layer's vector is made: as a rule the vector itself."""
    own = layer._parameters.get(name)
    if own is not None:
        return [own]
    if parametrize.is_parametrized(layer, name):
        parametrizations: nn.Module = layer.parametrizations[name]  # type: ignore[index,assignment]
        return list(parametrizations.parameters())
    parts = (layer._parameters.get(name + suffix) for suffix in _SUFFIXES)
    return [parameter for parameter in parts if parameter is not None]


def uses(model: nn.Module) -> Counter[int]:
    """How many places of a model a parameter has, by its ``id``."""
    return Counter(id(p) for module in model.modules() for p in module._parameters.values())


def refuse_unsized(name: str, layer: nn.Module) -> None:
    """Raise ValueError for a lazy layer that has met no input."""
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        raise ValueError(f"layer {name!r} has no size yet; run the model on one batch first")


def refuse_without_values(name: str, layer: nn.Module) -> None:
    """Raise ValueError for a layer that has no size yet, or is on the meta device."""
    refuse_unsized(name, layer)
    if any(tensor.is_meta for tensor in (*layer.parameters(False), *layer.buffers(False))):
        raise ValueError(f"layer {name!r} is on the meta device; give it values first")


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
