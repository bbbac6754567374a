"""timm's models with RBN layers in a folder: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import timm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm._version import __version__
from rbnorm.calibration import Calibration
from rbnorm.convert import convert_batchnorm
from rbnorm.files import replace, safetensors_of
from rbnorm.modules import _RepresentativeBatchNorm, rbn_layers

__all__ = ["from_pretrained", "save_pretrained"]

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
# With these timm would fetch weights, or read files that the folder does not have.
_FORBIDDEN: Final = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


def save_pretrained(
    model: nn.Module, folder: str | PathLike[str], name: str, **model_args: Any
) -> None:
    """Write a timm model, some or all of whose BatchNorm layers became RBN, to a folder.

    The folder gets ``config.json`` (the architecture, its arguments, and the options of every RBN
    layer) and ``model.safetensors`` (the state dict), each written whole or not at all. Any upload
    to a hub takes it as it is. Needs timm and safetensors, which the extra ``lab`` has.

    Args:
        model: The model, as ``timm.create_model(name, **model_args)`` makes it, converted.
        folder: Made where it does not exist; its two files are replaced.
        name: timm's name of the architecture.
        **model_args: Those of ``timm.create_model``, of JSON's types.

    Raises:
        ValueError: The model is not what the name and arguments make, has no RBN layer or one with
            a callable option, or an argument cannot be kept. Nothing has been written.
    """
    layers = {name: _options(name, layer) for name, layer in rbn_layers(model)}
    config = {
        "architecture": name,
        "model_args": model_args,
        "rbnorm": {"version": __version__, "layers": layers},
    }
    try:
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"model_args must be of JSON's types ({error})") from error
    state = model.state_dict()
    fresh = _build(config).state_dict()
    for key in (*state, *fresh):
        if key not in state or key not in fresh or state[key].shape != fresh[key].shape:
            raise ValueError(
                f"model must be timm's {name} with the arguments {model_args}, got one that "
                f"differs in {key}"
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / WEIGHTS, safetensors_of(state, {"format": "pt"}))
    replace(folder / CONFIG, text.encode())


def from_pretrained(folder: str | PathLike[str]) -> nn.Module:
    """Build the model that :func:`save_pretrained` wrote, in evaluation mode on the CPU.

    Nothing is downloaded, and nothing in the files is run.

    Args:
        folder: Where ``config.json`` and ``model.safetensors`` are.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: A file is broken, names no model of timm, or does not fit the other one.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
        state = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{folder} must hold {CONFIG} and {WEIGHTS}, got {error}") from error
    try:
        model = _build(config)
        model.load_state_dict(state)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{folder} must hold a model of save_pretrained, got {said}") from error
    return model.eval()


def _options(name: str, layer: _RepresentativeBatchNorm) -> dict[str, Any]:
    """What of the layer's calibration differs from the defaults."""
    options: dict[str, Any] = layer.calibration._asdict()
    for option in ("statistic", "restrict"):
        if not isinstance(options[option], str):
            raise ValueError(  # noqa: TRY004 - the layer's state is wrong, not its type
                f"{option} of layer {name!r} must be a name to be saved, got a callable"
            )
    return {k: v for k, v in options.items() if v != Calibration._field_defaults[k]}


def _build(config: dict[str, Any]) -> nn.Module:
    """The model of a config, without its weights."""
    name, arguments = config["architecture"], config["model_args"]
    for argument in _FORBIDDEN:
        if argument in arguments:
            raise ValueError(
                f"model_args must not have {argument!r}: the weights are in the folder"
            )
    if not timm.is_model(name):
        raise ValueError(f"name must be one of timm's models, got {name!r}")
    model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    modules = dict(model.named_modules())
    for layer, options in config["rbnorm"]["layers"].items():
        norm = modules.get(layer)
        if not isinstance(norm, _BatchNorm):
            raise ValueError(  # noqa: TRY004 - the file is wrong
                f"{name} has no BatchNorm at {layer!r}"
            )
        convert_batchnorm(model, preserve=False, where=layer.__eq__, **options)
    return model
