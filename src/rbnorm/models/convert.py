"""BatchNorm to RBN, on whole models."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import Parameter
from typing_extensions import Unpack

from rbnorm.layers.base import Model, _RepresentativeBatchNorm
from rbnorm.layers.classes import (
    RepresentativeBatchNorm1d,
    RepresentativeBatchNorm2d,
    RepresentativeBatchNorm3d,
    RepresentativeBatchNormAct2d,
)
from rbnorm.layers.options import NAMES, Calibration, CalibrationOptions
from rbnorm.layers.sync import SyncRepresentativeBatchNorm
from rbnorm.models.intact import remember
from rbnorm.models.originals import refuse_unsized, uses

__all__ = ["convert_batchnorm"]

COUNTERPARTS: dict[type[_BatchNorm], type[_RepresentativeBatchNorm]] = {
    nn.BatchNorm1d: RepresentativeBatchNorm1d,
    nn.BatchNorm2d: RepresentativeBatchNorm2d,
    nn.BatchNorm3d: RepresentativeBatchNorm3d,
    nn.SyncBatchNorm: SyncRepresentativeBatchNorm,
}

# By name, since importing FSDP takes longer than the rest of this library.
_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def _is_plain(layer: _BatchNorm, kind: type[_BatchNorm]) -> bool:
    """Whether a layer computes what ``kind`` does, from tensors of its own, and can hold ours."""
    derived = type(layer).__mro__[: type(layer).__mro__.index(kind)]
    names = (name for cls in derived for name in vars(cls))
    overrides = [name for name in names if not name.startswith("__") or name == "__call__"]
    taken = any(hasattr(layer, name) for name in (*NAMES, "calibration"))
    # A forward put on the instance, pruning, parametrisation and the like leave these traces.
    tampered = "forward" in vars(layer) or not {"weight", "bias"} <= layer._parameters.keys()
    return not (overrides or taken or tampered)


def counterpart(name: str, layer: _BatchNorm) -> type[_RepresentativeBatchNorm]:
    """The RBN class for a BatchNorm that can become one."""
    refuse_unsized(name, layer)
    made = layer.weight is not None and layer.weight.is_inference()
    if made or torch.is_inference_mode_enabled():
        raise ValueError(
            f"layer {name!r} cannot be trained when it is made or converted in inference mode; "
            "make and convert the model outside of it"
        )
    timm = sys.modules.get("timm.layers")  # once somebody has imported it
    kinds = {} if timm is None else {timm.BatchNormAct2d: RepresentativeBatchNormAct2d}
    for kind, rbn in (*kinds.items(), *COUNTERPARTS.items()):
        if isinstance(layer, kind) and _is_plain(layer, kind):
            return rbn
    raise ValueError(
        f"layer {name!r} is a {type(layer).__name__} that cannot become RBN; accepted are plain "
        "BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm and timm's BatchNormAct2d, without "
        "methods of their own, a replaced forward, pruning or parametrisation; exclude the layer "
        "with where=, or convert it to one of these first"
    )


def _check_ties(model: nn.Module, layers: Mapping[_BatchNorm, str]) -> None:
    """Refuse to divide a weight that something outside of ``layers`` uses too."""
    used, own = uses(model), Counter(id(layer.weight) for layer in layers)
    for layer, name in layers.items():
        if layer.weight is not None and used[id(layer.weight)] > own[id(layer.weight)]:
            raise ValueError(
                f"preserve=True divides the weight of layer {name!r}, which something that is not "
                "converted uses too; convert all layers that share it in one call, or pass "
                "preserve=False"
            )


def _selected(model: nn.Module, where: str | Callable[[str], bool] | None) -> dict[_BatchNorm, str]:
    """Each BatchNorm, with the first of its names that ``where`` accepts."""
    found: dict[_BatchNorm, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        wanted = fnmatchcase(name, where) if isinstance(where, str) else not where or where(name)
        if wanted and isinstance(module, _BatchNorm):
            found.setdefault(module, name)
    return found


def _preserving_gate(calibration: Calibration) -> float:
    """``R(w_b)``, by which gamma is divided so that the converted layer computes BatchNorm."""
    gate = calibration.gate()
    starts = calibration.center_weight_init, calibration.scale_weight_init
    if any(starts) or not math.isfinite(gate) or gate == 0:
        raise ValueError(
            "center_weight_init and scale_weight_init must be 0 to preserve the function, and "
            "restrict of scale_bias_init must be finite and not 0, "
            f"got {starts[0]}, {starts[1]} and {gate}; pass preserve=False to start elsewhere"
        )
    return gate


def _like(layer: _BatchNorm, model: nn.Module) -> Tensor:
    """A vector with the device, dtype and ``requires_grad`` that the calibration gets."""
    if layer.weight is not None:
        return layer.weight
    state = (layer.bias, layer.running_mean, *model.parameters(), *model.buffers())
    floating = (t for t in state if t is not None and t.is_floating_point())
    anchor = next(floating, torch.empty(0))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    vector = torch.empty(layer.num_features, device=anchor.device, dtype=anchor.dtype)
    return vector.requires_grad_(any(flags) or not flags)


def _new(like: Tensor) -> Parameter:
    return Parameter(torch.empty_like(like), like.requires_grad)


def put_constant(layer: _RepresentativeBatchNorm, like: Tensor) -> None:
    """Give a layer without gamma the buffer that stands in its place."""
    del layer._parameters["weight"]
    constant = torch.full_like(like, 1 / layer.calibration.gate(), requires_grad=False)
    layer.register_buffer("weight", constant)


def _check_wrappers(model: nn.Module) -> None:
    """Refuse where the gradients of parameters that are added now would not be averaged."""
    for name, module in model.named_modules():
        wrapper = _WRAPPERS.intersection(kind.__name__ for kind in type(module).__mro__)
        if wrapper:
            where = f"its module {name!r}" if name else "the model"
            raise ValueError(
                f"{where} is wrapped in {wrapper.pop()}, which averages the gradients of the "
                "parameters it found when it was made; convert the model first, then wrap it"
            )


@torch.no_grad()
def convert_layers(
    model: nn.Module, layers: Iterable[tuple[str, _BatchNorm, Calibration]], gate: float = 1.0
) -> None:
    """Convert layers of a model by their names, all or none, and divide gamma by ``gate``."""
    _check_wrappers(model)
    plan = [
        (name, layer, counterpart(name, layer), calibration, _like(layer, model))
        for name, layer, calibration in layers
        if not isinstance(layer, _RepresentativeBatchNorm)
    ]
    if gate != 1:
        _check_ties(model, {layer: name for name, layer, *_ in plan})
    divided: dict[int, Tensor] = {}  # tied weights once
    for _, norm, kind, calibration, like in plan:
        norm.__class__ = kind
        layer = cast("_RepresentativeBatchNorm", norm)
        layer.calibrate(calibration, partial(_new, like))
        layer.reset_calibration()
        if gate != 1:
            layer.preserved = True
            if layer.weight is None:
                put_constant(layer, like)
            else:
                divided[id(layer.weight)] = layer.weight
    for weight in divided.values():
        weight.div_(gate)
    remember(model)


def convert_batchnorm(
    model: Model,
    preserve: bool = True,
    *,
    where: str | Callable[[str], bool] | None = None,
    **calibration: Unpack[CalibrationOptions],
) -> Model:
    r"""Turn every BatchNorm of a model into RBN, in place.

    Each layer stays the object it is and changes its class, so hooks, shared modules, training
    flags, ``requires_grad``, dtype, device, ``eps``, ``momentum`` and references held elsewhere,
    such as an optimizer's, remain valid; add the new parameters to an optimizer made before.
    Converted are torch's BatchNorm1d, 2d and 3d, SyncBatchNorm (its process group stays), timm's
    BatchNormAct2d, and subclasses of these that define no methods or attributes of their own. RBN
    layers stay as they are. The calibration of a layer with a frozen ``weight``, or without one in
    a frozen model, is frozen too.

    Args:
        model: Any module, or a single BatchNorm.
        preserve: Keep the function: :math:`\gamma` is divided by :math:`R(w_b)`, so outputs agree
            to rounding in training and evaluation until the calibration is trained. A layer
            without :math:`\gamma` gets the constant :math:`1/R(w_b)` in a buffer ``weight``, which
            is not learnt. A BatchNorm's checkpoint that is loaded later is compensated likewise.
            False keeps :math:`\gamma`, for training from scratch as in the paper.
        where: Which layers, by their name in the model: a glob pattern such as ``"layer4.*"`` or
            a function of the name. None for all.
        **calibration: The keyword-only arguments of
            :class:`rbnorm.RepresentativeBatchNorm2d`: ``center, scale, statistic, restrict,
            center_weight_init, scale_weight_init, scale_bias_init``.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: A module is wrapped in DistributedDataParallel or FSDP, which would not average
            the new parameters' gradients; inference mode is on; no layer was found; a selected
            BatchNorm cannot be converted (lazy without a size, pruned, parametrised, with methods
            of its own or a replaced forward); the function cannot be preserved with these options;
            or a weight is shared with something that is not converted. The model is then unchanged.
        TypeError: An unknown keyword argument.
    """
    options = Calibration.of(**calibration)
    gate = _preserving_gate(options) if preserve else 1.0
    selected = _selected(model, where)
    if not selected:
        wanted = "" if where is None else f" that where={where!r} selects"
        raise ValueError(f"model must have a BatchNorm layer{wanted}, got {type(model).__name__}")
    convert_layers(model, ((name, layer, options) for layer, name in selected.items()), gate)
    return model
