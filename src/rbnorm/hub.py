"""Models with RBN layers in a folder: the record of their layers, and ``model.safetensors``."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Final

from torch import nn

from rbnorm.layers.base import Model
from rbnorm.models.files import packed, parse_json, replace, state_in
from rbnorm.models.record import convert_as_recorded, record_layers

__all__ = ["load", "save"]

RECORD: Final = "rbnorm.json"
WEIGHTS: Final = "model.safetensors"
# Where earlier versions, and the mixin for transformers, keep the record, under "rbnorm".
_CONFIG: Final = "config.json"


def save(model: nn.Module, folder: str | PathLike[str]) -> None:
    """Write any model, some or all of whose BatchNorm layers became RBN, to a folder.

    The folder gets ``rbnorm.json`` (the record of the RBN layers, see
    :func:`rbnorm.record_layers`) and ``model.safetensors`` (the state dict), each written whole or
    not at all. Any upload to a hub takes it as it is. Needs safetensors, which the extra ``lab``
    has.

    Args:
        model: The model.
        folder: Made where it does not exist; these two files are replaced, others stay.

    Raises:
        ValueError: The model has no RBN layer, one with a callable option, or a tensor that a file
            cannot hold. Nothing is written.
    """
    folder, weights = Path(folder), packed(model.state_dict())
    text = json.dumps(record_layers(model), indent=2, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / WEIGHTS, weights)
    replace(folder / RECORD, f"{text}\n".encode())


def load(model: Model, folder: str | PathLike[str]) -> Model:
    """Build, convert as recorded, then load: what :func:`save` wrote, into a model of your code.

    ::

        model = rbnorm.hub.load(timm.create_model("resnet18", num_classes=10), "my-model")

    Nothing is downloaded, and nothing in the files is run.

    Args:
        model: The model as it is built, with BatchNorm where RBN was saved, or with the same RBN.
        folder: Where ``rbnorm.json`` and ``model.safetensors`` are. The weights may also be those
            that another library's ``save_pretrained`` wrote, and the record may stand in a
            ``config.json`` under "rbnorm".

    Returns:
        ``model`` itself, converted and loaded, in the mode it was in.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: A file is broken, or does not fit the model or the other file.
    """
    folder = Path(folder)
    record, config = folder / RECORD, folder / _CONFIG
    try:
        only = config.exists() and not record.exists()
        kept = parse_json(config.read_bytes()) if only else {}
        found = kept["rbnorm"] if "rbnorm" in kept else parse_json(record.read_bytes())
        state = state_in((folder / WEIGHTS).read_bytes(), Path(WEIGHTS))
        convert_as_recorded(model, found)
        model.load_state_dict(state)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{folder} must hold what rbnorm.hub.save wrote, got {said}") from error
    return model
