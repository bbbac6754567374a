"""Normalisers by name, each put in the place of a model's BatchNorm."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, Final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm.definition import RESTRICTIONS, STATISTICS
from rbnorm.layers.options import Calibration
from rbnorm.models.convert import convert_batchnorm
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.names import norm_parts

_MOST_GROUPS: Final = 32
_LEAST_IN_GROUP: Final = 4
_CHOICES: Final = {"statistic": tuple(STATISTICS), "restrict": tuple(RESTRICTIONS)}
_DEFAULTS: Final[dict[str, Any]] = {
    **Calibration()._asdict(),
    "preserve": False,
    "first_center_weight_init": None,
    "first_layers": 1,
}


def canonical_norm(spec: str) -> str:
    """The one spelling of a norm.

    Args:
        spec: ``NAME`` or ``NAME:option=value:option=value...``. The names are
            :data:`rbnorm_lab.names.NORMS`. ``rbn``, without scaling ``rbn-center`` and without
            centring ``rbn-scale``, have the options of
            :class:`rbnorm.RepresentativeBatchNorm2d` that matter to them (``statistic``,
            ``restrict``, ``center_weight_init``, ``scale_weight_init``, ``scale_bias_init``),
            ``first_center_weight_init``, which holds in the model's first layer instead, or in its
            first ``first_layers``, and ``preserve=yes``, which divides gamma by the initial gate;
            the other norms have none.

    Returns:
        The name, and in alphabetical order the options that differ from their defaults.

    Raises:
        UsageError: There is no such name or option, or a value is out of range.
    """
    name, options = _parse(spec)
    if options:  # some values only fit together
        swap(nn.Sequential(nn.BatchNorm2d(1)), spec)
    given = [
        f"{option}={_text(value)}"
        for option, value in sorted(options.items())
        if value != _DEFAULTS[option]
    ]
    return ":".join([name, *given])


def swap(model: nn.Module, spec: str) -> nn.Module:
    """Turn a model built with BatchNorm into one that has this norm instead.

    Convolutions and linear layers keep their weights; BatchNorm's gamma and beta become the norm's.

    Args:
        model: The model, which is changed.
        spec: The norm; see :func:`canonical_norm`.

    Returns:
        The model, or the layer in its place if it is one.

    Raises:
        UsageError: The spec is wrong, or the model has a BatchNorm that this norm cannot replace.
    """
    name, options = _parse(spec)
    try:
        return SWAPS[name](model, **options)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"norm {spec!r} is not possible here: {first_line(error)}") from error


def _parse(spec: str) -> tuple[str, dict[str, Any]]:
    name, options = norm_parts(spec)
    return name, {option: _value(option, text) for option, text in options.items()}


def _value(option: str, text: str) -> bool | float | str:
    if option in _CHOICES:
        if text not in _CHOICES[option]:
            raise UsageError(f"{option} must be one of {', '.join(_CHOICES[option])}, not {text!r}")
        return text
    if isinstance(_DEFAULTS[option], bool):
        if text not in ("yes", "no"):
            raise UsageError(f"{option} must be yes or no, not {text!r}")
        return text == "yes"
    try:
        return float(text) + 0.0  # -0 is 0
    except ValueError as error:
        raise UsageError(f"{option} must be a number, not {text!r}") from error


def _text(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else repr(value).removesuffix(".0")


def _groups(channels: int) -> int:
    """Groups of four channels or more: groups of one would be instance normalisation."""
    most = min(max(channels // _LEAST_IN_GROUP, 1), _MOST_GROUPS)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _group_norm(layer: _BatchNorm) -> nn.Module:
    channels = layer.num_features
    return nn.GroupNorm(_groups(channels), channels, layer.eps, layer.affine)


def _layer_norm(layer: _BatchNorm) -> nn.Module:
    return nn.GroupNorm(1, layer.num_features, layer.eps, layer.affine)


def _channel_norm(layer: _BatchNorm) -> nn.Module:
    import timm.layers  # noqa: PLC0415 - takes seconds to import, and most studies never need it

    layers: Any = timm.layers
    norm: nn.Module = layers.LayerNorm2d(layer.num_features, layer.eps, layer.affine)
    return norm


def _instance_norm(layer: _BatchNorm) -> nn.Module:
    return nn.InstanceNorm2d(layer.num_features, layer.eps, affine=layer.affine)


def _replace(
    model: nn.Module, make: Callable[[_BatchNorm], nn.Module], *, images: bool = False
) -> nn.Module:
    """Put ``make(layer)`` in the place of every BatchNorm, one for each even where it is shared.

    Args:
        model: The model, which is changed and returned.
        make: Makes the layer; gamma and beta of the BatchNorm become its own.
        images: Whether ``make`` only knows BatchNorm2d.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        if images and not isinstance(layer, nn.BatchNorm2d):
            raise UsageError(f"this norm replaces BatchNorm2d, and the model has {layer!r}")
    made: dict[nn.Module | None, nn.Module] = {layer: _instead(layer, make) for layer in layers}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            parent._modules[name] = made.get(child, child)
    return model


def _instead(layer: _BatchNorm, make: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    """The norm with the layer's affine parameters, and what else timm's BatchNormAct2d does."""
    norm = make(layer)
    if layer.affine:
        norm.weight, norm.bias = layer.weight, layer.bias
    children = dict(layer.named_children())
    others = [children[name] for name in ("drop", "act") if name in children]
    others = [module for module in others if not isinstance(module, nn.Identity)]
    return nn.Sequential(norm, *others) if others else norm


def _rbn(
    model: nn.Module,
    *,
    preserve: bool = False,
    first_center_weight_init: float | None = None,
    first_layers: float = 1,
    **options: Any,
) -> nn.Module:
    if first_layers < 1 or first_layers % 1:
        raise ValueError(f"first_layers must be a whole number from 1 on, not {first_layers}")
    if first_center_weight_init is not None:
        names = (name for name, layer in model.named_modules() if isinstance(layer, _BatchNorm))
        of_first = set(islice(names, int(first_layers)))
        first = {**options, "center_weight_init": first_center_weight_init}
        convert_batchnorm(model, preserve, where=of_first.__contains__, **first)
    return convert_batchnorm(model, preserve, **options)


def _keep(model: nn.Module) -> nn.Module:
    return model


SWAPS: Final[dict[str, Callable[..., nn.Module]]] = {
    "bn": _keep,
    "gn": partial(_replace, make=_group_norm),
    "ln": partial(_replace, make=_layer_norm),
    "ln2d": partial(_replace, make=_channel_norm, images=True),
    "in": partial(_replace, make=_instance_norm, images=True),
    "rbn": _rbn,
    "rbn-center": partial(_rbn, scale=False),
    "rbn-scale": partial(_rbn, center=False),
}
"""Every name's way to turn a model built with BatchNorm into one that has this norm instead."""
