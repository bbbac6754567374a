"""Which layers of a model are RBN, with which options: what a state dict does not say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm._version import __version__
from rbnorm.layers.base import _RepresentativeBatchNorm, rbn_layers
from rbnorm.layers.options import Calibration
from rbnorm.models.convert import convert_layers, put_constant

__all__ = ["convert_as_recorded", "record_layers"]

Model = TypeVar("Model", bound=nn.Module)

# What a layer has beside its calibration, and the type it must be of.
_CONSTANT: Final = "constant_weight"
_STATE: Final[dict[str, tuple[type, ...]]] = {
    "eps": (float, int),
    "momentum": (float, int, type(None)),
    "frozen_stats": (bool,),
    _CONSTANT: (bool,),
}


def record_layers(model: nn.Module) -> dict[str, object]:
    """Write down every RBN layer of a model, for :func:`convert_as_recorded`.

    Args:
        model: Any module with RBN layers.

    Returns:
        ``{"version": ..., "layers": {name: options}}``, of JSON's types: of each layer the options
        of its calibration that differ from the defaults, ``eps``, ``momentum`` and whether its
        statistics are frozen, as they are now. Parameters and buffers are the state dict's;
        process groups are not recorded.

    Raises:
        ValueError: There is no RBN layer, or one has a callable for its statistic or restriction.
    """
    return {
        "version": __version__,
        "layers": {name: _options(name, layer) for name, layer in rbn_layers(model)},
    }


def _options(name: str, layer: _RepresentativeBatchNorm) -> dict[str, object]:
    options: dict[str, object] = layer.calibration._asdict()
    for option in ("statistic", "restrict"):
        if not isinstance(options[option], str):
            raise ValueError(  # noqa: TRY004 - the layer's state is wrong, not its type
                f"{option} of layer {name!r} must be a name to be saved, got a callable"
            )
    changed = {k: v for k, v in options.items() if v != Calibration._field_defaults[k]}
    state = {"eps": layer.eps, "momentum": layer.momentum}
    if layer.frozen_stats:
        state["frozen_stats"] = True
    if "weight" in layer._buffers:
        state[_CONSTANT] = True
    return {**changed, **state}


def _state_of(name: str, options: dict[str, object]) -> dict[str, object]:
    """Take a layer's plain attributes out of its options, checked."""
    state = {key: options.pop(key) for key in _STATE if key in options}
    for key, value in state.items():
        fine = type(value) in _STATE[key]
        if isinstance(value, (int, float)):
            fine = fine and math.isfinite(value) and not (key == "eps" and value < 0)
        if not fine:
            raise ValueError(f"{key} of layer {name!r} in the record cannot be {value!r}")
    return state


def _checked(record: Mapping[str, object]) -> dict[str, tuple[Calibration, dict[str, object]]]:
    layers = record.get("layers") if isinstance(record, Mapping) else None
    if not isinstance(layers, Mapping):
        raise ValueError(  # noqa: TRY004 - it comes from a file
            "a record must be what record_layers returns: a mapping with 'layers'"
        )
    checked = {}
    for name, given in layers.items():
        if not isinstance(given, Mapping):
            raise ValueError(f"layer {name!r} in the record must have options, got {given!r}")  # noqa: TRY004
        options = dict(given)
        state = _state_of(name, options)
        try:
            calibration = Calibration.of(**options)
            hash(calibration)
        except (TypeError, ValueError) as error:
            raise ValueError(f"layer {name!r} in the record: {error}") from error
        checked[name] = calibration, state
    return checked


def convert_as_recorded(model: Model, record: Mapping[str, object]) -> Model:
    """Convert a BatchNorm model to the RBN layers of a record, in place, and load it afterwards.

    Build, convert as recorded, then load, for any module::

        record = rbnorm.record_layers(trained)  # of JSON's types: keep it beside the weights
        torch.save(trained.state_dict(), "weights.pt")

        model = rbnorm.convert_as_recorded(build(), record)
        model.load_state_dict(torch.load("weights.pt"))

    The weights stay as they are (``preserve=False``), since those of the state dict come next.
    ``eps``, ``momentum`` and frozen statistics are set as recorded. A layer that is RBN already
    must have the recorded calibration. Works on the meta device, too.

    Args:
        model: The model as its code builds it.
        record: What :func:`record_layers` returned.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: A recorded layer is missing, cannot be converted, or is RBN with another
            calibration; or the record is broken. The model is then unchanged.
    """
    plan = _checked(record)
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen = []
    for name, (calibration, _) in plan.items():
        norm = modules.get(name)
        if not isinstance(norm, _BatchNorm):
            raise ValueError(f"{type(model).__name__} has no BatchNorm at {name!r}")  # noqa: TRY004
        if isinstance(norm, _RepresentativeBatchNorm) and norm.calibration != calibration:
            raise ValueError(
                f"layer {name!r} must have the recorded {calibration}, got {norm.calibration}"
            )
        chosen.append((name, norm, calibration))
    convert_layers(model, chosen)
    for name, (_, state) in plan.items():
        _restore(modules[name], state)
    return model


def _restore(layer: _RepresentativeBatchNorm, state: dict[str, object]) -> None:
    constant = state.pop(_CONSTANT, False)
    for key, value in {"frozen_stats": False, **state}.items():
        setattr(layer, key, value)
    if constant and layer._parameters.get("weight", layer) is None:
        like = next(iter((*layer.parameters(), *layer.buffers())))
        put_constant(layer, like)
