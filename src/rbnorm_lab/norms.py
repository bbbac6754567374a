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
from rbnorm_lab.gated import InstanceEnhancementBatchNorm2d
from rbnorm_lab.names import norm_parts
from rbnorm_lab.replacing import replace, replace_with_activation

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
    ``frn`` (filter response normalisation with its thresholded linear unit) and ``evonorm-s0``
    replace the activation that follows, too; where none does, timm's layers leave out the
    threshold and everything but the affine map.

    Args:
        model: The model, which is not to be used afterwards.
        spec: The norm; see :func:`canonical_norm`.

    Returns:
        The model, or for ``frn`` and ``evonorm-s0`` one of the same names that shares its weights.

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
    norm: nn.Module = _timm_layers().LayerNorm2d(layer.num_features, layer.eps, layer.affine)
    return norm


def _instance_norm(layer: _BatchNorm) -> nn.Module:
    return nn.InstanceNorm2d(layer.num_features, layer.eps, affine=layer.affine)


def _gated(layer: _BatchNorm) -> nn.Module:
    return InstanceEnhancementBatchNorm2d(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )


def _timm_layers() -> Any:
    import timm.layers  # noqa: PLC0415 - takes seconds to import, and most studies never need it

    return timm.layers


def _filter_response_norm(layer: _BatchNorm, activated: bool) -> nn.Module:
    norm: nn.Module = _timm_layers().FilterResponseNormTlu2d(layer.num_features, activated)
    return norm


def _evonorm_s0(layer: _BatchNorm, activated: bool) -> nn.Module:
    channels = layer.num_features
    norm: nn.Module = _timm_layers().EvoNorm2dS0(channels, _groups(channels), apply_act=activated)
    return norm


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
    "gn": partial(replace, make=_group_norm),
    "ln": partial(replace, make=_layer_norm),
    "ln2d": partial(replace, make=_channel_norm, images=True),
    "in": partial(replace, make=_instance_norm, images=True),
    "iebn": partial(replace, make=_gated, images=True),
    "frn": partial(replace_with_activation, make=_filter_response_norm),
    "evonorm-s0": partial(replace_with_activation, make=_evonorm_s0),
    "rbn": _rbn,
    "rbn-center": partial(_rbn, scale=False),
    "rbn-scale": partial(_rbn, center=False),
}
"""Every name's way to turn a model built with BatchNorm into one that has this norm instead."""
