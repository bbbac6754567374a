"""Whether the RBN layers of a model are still RBN after a tool that knows BatchNorm alone."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["assert_intact"]

# The storages of layers that somebody looked at, and the layer. A tool that puts a layer of its own
# in the place of ours has to read our tensors, and most keep at least one of them.
_given = WeakIdKeyDictionary()

# Functions of other libraries that lose the calibration, and what to do in their place.
_LOSSY = {
    "convert_sync_batchnorm": "use rbnorm.convert_sync(model)",
    "freeze_batch_norm_2d": "use rbnorm.freeze(model)",
    "convert_splitbn_model": "leave the batch in one piece",
    "fuse_conv_bn_eval": "rbnorm.revert_batchnorm(model, inputs) tells what the loss would be",
    "fuse_linear_bn_eval": "rbnorm.revert_batchnorm(model, inputs) tells what the loss would be",
}
_LIBRARIES = {"torch", "timm"}
_ORDINARY: tuple[type, ...] = (Tensor, Parameter)


def _refuse(tool: FrameType) -> None:
    """Stop the tools of other libraries that would put something else in the layer's place."""
    name = tool.f_code.co_name
    library = tool.f_globals.get("__name__", "").partition(".")[0]
    if name in _LOSSY and library in _LIBRARIES:
        raise ValueError(
            f"{name} of {library} knows BatchNorm alone and would lose the calibration of an RBN "
            f"layer; {_LOSSY[name]}"
        )


def _storage(value: object) -> torch.UntypedStorage | None:
    """The memory of an ordinary tensor; others, such as a DTensor, stand for what they hold."""
    if isinstance(value, Tensor) and type(value) in _ORDINARY:
        return value.untyped_storage()
    return None


def _storages(module: nn.Module) -> list[torch.UntypedStorage]:
    own = (*module._parameters.values(), *module._buffers.values())
    return [storage for storage in map(_storage, own) if storage is not None]


class Guarded(nn.Module):
    """A layer that known tools may not replace, and that is missed when an unknown one has."""

    __jit_unused_properties__ = ("running_mean",)

    def _read_running_mean(self) -> Any:
        """The buffer; every tool that wants to replace a BatchNorm comes and reads it."""
        mean = super().__getattr__("running_mean")
        # Under a transform of torch.func, tensors may have no storage.
        if not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()):
            _refuse(sys._getframe(1))
            _given.update(dict.fromkeys(_storages(self), weakref.ref(self)))
        return mean

    # Not by `__getattr__`, which makes torch.compile specialise on sizes.
    running_mean: Any = property(_read_running_mean)

    def forget(self) -> None:
        """Give the tensors away for good."""
        for storage in _storages(self):
            _given.pop(storage, None)


def _took_over(module: nn.Module, present: set[int]) -> bool:
    """Whether a module normalises with tensors of an RBN layer that is not in the model."""
    if "running_mean" not in module._buffers:
        return False
    owners = [_given.get(storage) for storage in _storages(module)]
    return any(owner is not None and id(owner()) not in present for owner in owners)


def assert_intact(model: nn.Module, expected: Iterable[str] = ()) -> list[str]:
    """Raise if a tool turned RBN layers of a model into something else.

    Tools put a layer of their own in the place of every BatchNorm, RBN included, and lose the
    calibration without a word. Those of torch and timm are stopped by the layer itself
    (``convert_sync_batchnorm``, ``freeze_batch_norm_2d``, ``convert_splitbn_model``,
    ``fuse_conv_bn_eval``, ``fuse_linear_bn_eval``); for all others::

        names = rbnorm.assert_intact(model)
        model = tool(model)
        rbnorm.assert_intact(model, names)

    Without ``expected`` this finds normalisers that took the ``weight``, the ``bias`` or a running
    statistic from an RBN layer, and share its memory still: not after a copy, or on another device
    or in another dtype. Layers that left no trace, as after a fusion with a convolution, are found
    by ``expected`` alone.

    Args:
        model: Any module.
        expected: Names of modules of the model that must be RBN layers.

    Returns:
        The names of all RBN layers of the model.

    Raises:
        ValueError: A layer was lost; the message names each, and what to do instead.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = {name: module for name, module in modules.items() if isinstance(module, Guarded)}
    present = {id(layer) for layer in layers.values()}
    lost = [name for name in expected if name not in layers]
    lost += [
        name
        for name, module in modules.items()
        if name not in layers and name not in lost and _took_over(module, present)
    ]
    if lost:
        kinds = [type(modules[name]).__name__ if name in modules else "nothing" for name in lost]
        pairs = ", ".join(f"{name!r} by {kind}" for name, kind in zip(lost, kinds, strict=True))
        raise ValueError(
            f"RBN layers were replaced and their calibration is lost: {pairs}; make the model "
            "again, and use rbnorm.convert_sync(model) to synchronise it, rbnorm.freeze(model) to "
            "freeze it, and no fusion of convolution and BatchNorm"
        )
    return list(layers)
