"""BatchNorm to RBN, on whole models."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Parameter

from rbnorm.modules import (
    Calibration,
    RepresentativeBatchNorm1d,
    RepresentativeBatchNorm2d,
    RepresentativeBatchNorm3d,
    RepresentativeBatchNormAct2d,
    _RepresentativeBatchNorm,
)
from rbnorm.reference import RESTRICTIONS, resolve

__all__ = ["convert_batchnorm"]

Model = TypeVar("Model", bound=nn.Module)

_COUNTERPARTS: dict[type[_BatchNorm], type[_RepresentativeBatchNorm]] = {
    nn.BatchNorm1d: RepresentativeBatchNorm1d,
    nn.BatchNorm2d: RepresentativeBatchNorm2d,
    nn.BatchNorm3d: RepresentativeBatchNorm3d,
}


def counterparts() -> dict[type[_BatchNorm], type[_RepresentativeBatchNorm]]:
    """Torch's layers, and timm's norm-act layer once somebody has imported timm."""
    timm = sys.modules.get("timm.layers")
    norm_act = {} if timm is None else {timm.BatchNormAct2d: RepresentativeBatchNormAct2d}
    return {**norm_act, **_COUNTERPARTS}


def _counterpart(name: str, layer: _BatchNorm) -> type[_RepresentativeBatchNorm]:
    """The RBN class for a BatchNorm, provided that it computes what that class computes."""
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        raise ValueError(
            f"layer {name!r} is a {type(layer).__name__} without a size yet; "
            "run the model on one batch first"
        )
    for kind, counterpart in counterparts().items():
        own = type(layer).forward is kind.forward and "parametrizations" not in layer._modules
        if isinstance(layer, kind) and own:
            return counterpart
    raise ValueError(
        f"layer {name!r} is a {type(layer).__name__}, which cannot become RBN; accepted are "
        "BatchNorm1d, BatchNorm2d, BatchNorm3d, timm's BatchNormAct2d, and subclasses that keep "
        "their forward: exclude the layer with where=, or convert it to one of these first"
    )


def _selected(
    model: nn.Module, where: str | Callable[[str], bool] | None
) -> Iterator[tuple[str, nn.Module]]:
    """Each module once, under the first of its names that ``where`` accepts."""
    seen: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in seen:
            continue
        if where is None or (fnmatchcase(name, where) if isinstance(where, str) else where(name)):
            seen.add(id(module))
            yield name, module


def _preserving_gate(calibration: Calibration) -> float:
    """``R(w_b)``, by which gamma is divided so that the converted layer computes BatchNorm."""
    for name in ("center_weight_init", "scale_weight_init"):
        if getattr(calibration, name) != 0:
            raise ValueError(
                f"{name} must be 0 to preserve the function, got {getattr(calibration, name)}; "
                "pass preserve=False to start elsewhere"
            )
    if not calibration.scale:
        return 1.0
    restrict = resolve("restrict", calibration.restrict, RESTRICTIONS)
    gate = float(restrict(torch.tensor([calibration.scale_bias_init], dtype=torch.float64)))
    if not math.isfinite(gate) or gate == 0:
        raise ValueError(
            f"restrict of scale_bias_init must be finite and not 0 to preserve the function, "
            f"got {gate} at {calibration.scale_bias_init}; choose another scale_bias_init"
        )
    return gate


def _anchor(layer: _BatchNorm) -> Tensor:
    """The tensor whose device and dtype the calibration parameters share."""
    state = (layer.weight, layer.bias, layer.running_mean)
    return next((tensor for tensor in state if tensor is not None), torch.empty(0))


def _become_rbn(
    layer: _BatchNorm, kind: type[_RepresentativeBatchNorm], calibration: Calibration
) -> None:
    anchor = _anchor(layer)
    requires_grad = anchor.requires_grad or not isinstance(anchor, Parameter)
    layer.__class__ = kind
    assert isinstance(layer, _RepresentativeBatchNorm)
    layer.calibrate(
        calibration,
        lambda: Parameter(
            torch.empty(layer.num_features, device=anchor.device, dtype=anchor.dtype),
            requires_grad=requires_grad,
        ),
    )
    layer.reset_calibration()


def convert_batchnorm(
    model: Model,
    preserve: bool = True,
    *,
    where: str | Callable[[str], bool] | None = None,
    **calibration: Any,
) -> Model:
    r"""Turn every BatchNorm of a model into RBN, in place.

    Each layer stays the object it is and changes its class, so hooks, shared modules, training
    flags, ``requires_grad``, dtype, device, ``eps``, ``momentum`` and references held elsewhere,
    such as an optimizer's, remain valid; add the new parameters to an optimizer made before.
    Converted are torch's BatchNorm1d, 2d and 3d, timm's BatchNormAct2d, and subclasses of these
    that keep their forward. RBN layers stay as they are. The calibration parameters of a layer
    with a frozen ``weight`` are frozen too.

    Args:
        model: Any module, or a single BatchNorm.
        preserve: Keep the function: :math:`\gamma` is divided by :math:`R(w_b)`, so outputs agree
            to rounding in training and evaluation until the calibration is trained. A layer
            without :math:`\gamma` gets the constant :math:`1/R(w_b)` in a buffer ``weight``, which
            is not learnt. False keeps :math:`\gamma`, for training from scratch as in the paper.
        where: Which layers, by their name in the model: a glob pattern such as ``"layer4.*"`` or
            a function of the name. None for all.
        **calibration: The keyword-only arguments of
            :class:`rbnorm.RepresentativeBatchNorm2d`: ``center, scale, statistic, restrict,
            center_weight_init, scale_weight_init, scale_bias_init``.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: No layer was found, a selected BatchNorm cannot be converted (synchronised,
            lazy without a size, parametrised, or with a forward of its own), or the function
            cannot be preserved with these options. The model is then unchanged.
        TypeError: An unknown keyword argument.
    """
    options = Calibration(**calibration)
    options.check()
    gate = _preserving_gate(options) if preserve else 1.0
    selected = [(n, m) for n, m in _selected(model, where) if isinstance(m, _BatchNorm)]
    if not selected:
        wanted = "" if where is None else f" that where={where!r} selects"
        raise ValueError(f"model must have a BatchNorm layer{wanted}, got {type(model).__name__}")
    plan = [
        (layer, _counterpart(name, layer))
        for name, layer in selected
        if not isinstance(layer, _RepresentativeBatchNorm)
    ]
    divided: set[int] = set()
    for layer, kind in plan:
        _become_rbn(layer, kind, options)
        if gate == 1.0:
            continue
        if layer.weight is None:
            anchor = _anchor(layer)
            del layer._parameters["weight"]
            constant = torch.full((layer.num_features,), 1 / gate)
            layer.register_buffer("weight", constant.to(anchor.device, anchor.dtype))
        elif id(layer.weight) not in divided:  # tied weights are divided once
            divided.add(id(layer.weight))
            with torch.no_grad():
                layer.weight.div_(gate)
    return model
