"""Which layers of a model are RBN, with which options: what a state dict does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm._version import __version__
from rbnorm.layers.base import Model, _RepresentativeBatchNorm, rbn_layers
from rbnorm.layers.options import Calibration, check_rates
from rbnorm.models.convert import convert_layers, put_constant

__all__ = ["convert_as_recorded", "record_layers"]

# What is recorded of a layer besides its calibration.
_STATE: Final = ("eps", "momentum", "frozen_stats", "constant_weight")


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
    constant = "weight" in layer._buffers
    flags = {"frozen_stats": layer.frozen_stats, "constant_weight": constant}
    state = {"eps": layer.eps, "momentum": layer.momentum}
    return {**changed, **state, **{name: True for name, on in flags.items() if on}}


def _checked(name: str, given: object) -> tuple[Calibration, dict[str, Any]]:
    """The calibration of a recorded layer, and the rest of its options."""
    try:
        options = dict(given)  # type: ignore[call-overload]
        state = {key: options.pop(key) for key in _STATE if key in options}
        check_rates(state.get("eps", 0.0), state.get("momentum"))
        calibration = Calibration.of(**options)
        hash(calibration)
    except (TypeError, ValueError) as error:
        raise ValueError(f"layer {name!r} in the record: {error}") from error
    return calibration, state


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
    layers = record.get("layers") if isinstance(record, Mapping) else None
    if not isinstance(layers, Mapping):
        raise ValueError(  # noqa: TRY004 - it comes from a file
            "a record must be what record_layers returns: a mapping with 'layers'"
        )
    plan = {name: _checked(name, given) for name, given in layers.items()}
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
        layer: Any = modules[name]
        layer.eps = state.get("eps", layer.eps)
        layer.momentum = state.get("momentum", layer.momentum)
        layer.frozen_stats = bool(state.get("frozen_stats"))
        if state.get("constant_weight") and layer._parameters.get("weight", layer) is None:
            put_constant(layer, next(iter((*layer.parameters(), *layer.buffers()))))
    return model
