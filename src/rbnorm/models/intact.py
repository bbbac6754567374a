"""Whether the RBN layers of a model are still RBN after a tool that knows only BatchNorm.

A model remembers the names of its RBN layers: that finds what got past the layers' own guard
(:mod:`rbnorm.layers.guard`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import Parameter

from rbnorm.layers.base import GAMMA, _RepresentativeBatchNorm
from rbnorm.layers.options import NAMES

__all__ = ["assert_intact"]

_ORDINARY = (Tensor, Parameter)

# Where a model keeps the names of its layers: a plain attribute, so that copies have it too.
_MEMORY = "_rbn_layers"
# An attribute of layers that were replaced on purpose, and of their copies.
_RELEASED = "_released"


def remember(model: nn.Module) -> None:
    """Note in a model which of its layers are RBN."""
    layers = _layers(model)
    for layer in layers.values():
        vars(layer)[GAMMA] = _gamma(layer)
        vars(layer).pop(_RELEASED, None)
    vars(model).pop(_MEMORY, None)
    if layers and model not in layers.values():
        vars(model)[_MEMORY] = tuple(layers)


def forget(model: nn.Module) -> None:
    """Note that a model is about to lose its layers on purpose."""
    for module in model.modules():
        vars(module).pop(_MEMORY, None)
        if isinstance(module, _RepresentativeBatchNorm):
            vars(module)[_RELEASED] = True


def _layers(model: nn.Module) -> dict[str, _RepresentativeBatchNorm]:
    """The RBN layers by all of their names."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: m for name, m in modules if isinstance(m, _RepresentativeBatchNorm)}


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _programmed(module: nn.Module) -> set[str]:
    """The names below a program, traced or exported, of what was an RBN layer in its model."""
    if isinstance(module, torch.jit.ScriptModule):
        return {""} if "RepresentativeBatchNorm" in getattr(module, "original_name", "") else set()
    if not isinstance(module, fx.GraphModule):
        return set()
    stacks = (node.meta.get("nn_module_stack") or {} for node in module.graph.nodes)
    levels = (level for stack in stacks for level in stack.values())
    return {path for path, kind in levels if "RepresentativeBatchNorm" in str(kind)}


def _gamma(layer: _RepresentativeBatchNorm) -> tuple[int, float, float] | None:
    """The batches so far, and the range of a gamma that conversion divided; None for any other."""
    found = layer._parameters.get("weight"), layer._buffers.get("weight")
    weight: Any = next((tensor for tensor in found if tensor is not None), None)
    if not layer.preserved or type(weight) not in _ORDINARY:
        return None
    try:
        low, high = weight.detach().aminmax()
        batches: Any = layer.num_batches_tracked
        return int(batches), float(low), float(high)
    except (RuntimeError, TypeError):  # without memory, channels or a dense layout; not counted
        return None


def _is_reset(layer: _RepresentativeBatchNorm) -> bool:
    """Whether a gamma that conversion divided was set since: to 1, or without training."""
    now, before = _gamma(layer), vars(layer).get(GAMMA)
    if now is None or now[1:] == (1, 1):
        return now is not None
    if before is None or before[0] != now[0] or layer.frozen_stats or now[1:] == (0, 0):
        return False
    calibration = (pair for name, pair in layer.additions().items() if name in NAMES)
    trained = any(bool((tensor != value).any()) for tensor, value in calibration)
    return not (trained or all(map(partial(math.isclose, rel_tol=0.01), before[1:], now[1:])))


def _check_lost(modules: dict[str, nn.Module], present: list[str], expected: list[str]) -> None:
    lost = [name for name in expected if name not in present]
    if not lost:
        return
    kinds = [type(modules[name]).__name__ if name in modules else "nothing" for name in lost]
    pairs = ", ".join(f"{name!r} by {kind}" for name, kind in zip(lost, kinds, strict=True))
    raise ValueError(
        f"RBN layers were replaced and their calibration is lost: {pairs}; make the model again, "
        "and use rbnorm.convert_sync(model) to synchronise it, rbnorm.freeze(model) to freeze it, "
        "and no fusion of convolution and BatchNorm; if this is intended, "
        "rbnorm.assert_intact(model, []) accepts the model as it is"
    )


def assert_intact(model: nn.Module, expected: Iterable[str] | None = None) -> list[str]:
    """Raise if a tool turned RBN layers of a model into something else.

    Tools put a layer of their own in the place of every BatchNorm, RBN included, and lose the
    calibration without a word. The layer itself stops functions that read from it what BatchNorm
    is made of, and nothing of the calibration: its running mean and variance, ``weight`` and
    ``bias``. So do all that fuse it with a convolution, freeze, synchronise or copy it. This
    function finds what was lost in another way::

        names = rbnorm.assert_intact(model)
        model = tool(model)
        rbnorm.assert_intact(model, names)

    A model remembers its layers from the call that converted it or looked at it last, and its
    copies do too; without ``expected`` the layers are those. It has nothing to remember where a
    tool makes a new model. Programs that ``torch.jit.trace`` and ``torch.export`` make of a model
    have its layers.

    Args:
        model: Any module.
        expected: Names of modules of the model that must be RBN layers; None for those that the
            model remembers.

    Returns:
        The names of all RBN layers of the model. It remembers these.

    Raises:
        ValueError: A layer was lost; the message names each, and what to do instead. Or an
            initialisation loop set the weight of a converted layer, which conversion had divided
            by :math:`R(w_b)`: it is 1, or has changed since the last look without a batch in
            training and without a checkpoint, and the calibration has not.
    """
    modules, layers = dict(model.named_modules(remove_duplicate=False)), _layers(model)
    present = list(layers)
    for name, module in modules.items():
        present += sorted(_join(name, inner) for inner in _programmed(module))
    if expected is None:
        memories = ((name, vars(module).get(_MEMORY, ())) for name, module in modules.items())
        remembered = [_join(name, inner) for name, names in memories for inner in names]
        released = {name for name, module in modules.items() if _RELEASED in vars(module)}
        expected = [name for name in remembered if name not in released]
    _check_lost(modules, present, list(dict.fromkeys(expected)))
    reset = [name for name, layer in layers.items() if _is_reset(layer)]
    if reset:
        raise ValueError(
            f"the weight of converted layers was set, which changes what the model computes: "
            f"{', '.join(map(repr, reset))}; initialise the model before convert_batchnorm, or "
            "convert it with preserve=False to train it from scratch; if this is intended, set "
            "layer.preserved = False"
        )
    remember(model)
    return list(dict.fromkeys(present))
