"""Checkpoints of BatchNorm and of the official implementation, made into those of a layer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from rbnorm.layers.options import AFFINE, NAMES

State = dict[str, Tensor]


def flatten_official(state: State, prefix: str) -> None:
    """Give vectors of shape (1, C, 1, 1) the shape (C,)."""
    for name in (*AFFINE, *NAMES):
        value = state.get(prefix + name)
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == value.numel():
            state[prefix + name] = value.reshape(-1)


def complete_batchnorm(
    layer: _BatchNorm,
    additions: Mapping[str, tuple[Tensor, float]],
    gate: float | None,
    state: State,
    prefix: str,
) -> None:
    """Add the initial calibration to a BatchNorm's checkpoint, which has nothing of it.

    Where conversion had preserved the function, gamma is divided as it was then, by ``gate``.
    """
    own = {"weight": layer._parameters.get("weight"), "running_mean": layer.running_mean}
    keys = [prefix + name for name, tensor in own.items() if tensor is not None]
    # An entry without memory is the layer's own: a loader fills in what a file lacks.
    given = (state.get(prefix + name) for name in NAMES)
    if any(value is not None and not value.is_meta for value in given):
        if gate is not None:
            _warn_of_mixture(layer, state, prefix)
        return
    if any(key not in state for key in keys):
        return
    for name, (tensor, value) in additions.items():
        if not keys:  # nothing tells a checkpoint of this layer from one without it
            state.setdefault(prefix + name, tensor.detach())
            continue
        # Of the kind of its neighbour, such as a shard.
        first = state[keys[0]]
        like = first if own["weight"] is not None or is_lazy(tensor) else tensor
        state[prefix + name] = torch.full_like(
            like.detach(), value, dtype=tensor.dtype, device=first.device
        )
    if gate is not None and own["weight"] is not None:
        state[prefix + "weight"] = state[prefix + "weight"].detach() / gate


def _warn_of_mixture(layer: _BatchNorm, state: State, prefix: str) -> None:
    """Warn where a BatchNorm's checkpoint was put into the state of the converted model."""
    values = {**layer._parameters, **layer._buffers}
    own = {name for name, value in values.items() if _is_in(state, prefix + name, value)}
    present = {name for name in NAMES if values.get(name) is not None}
    if own == present:
        warnings.warn(
            f"the state of {prefix[:-1]!r} has the layer's own calibration, and all else from "
            "elsewhere; if that is a BatchNorm's checkpoint, load it by itself, by "
            "model.load_state_dict(checkpoint, strict=False), or before convert_batchnorm, so that "
            "the function is preserved",
            stacklevel=2,
        )


def _is_in(state: State, key: str, value: Tensor | None) -> bool:
    """Whether an entry is a tensor of the layer itself, as in its ``state_dict()``."""
    if value is None or key not in state:
        return False
    one, other = (getattr(t, "_local_tensor", t) for t in (state[key], value))
    return one.data_ptr() == other.data_ptr()
