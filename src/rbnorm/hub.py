"""Models with RBN layers in a folder: the record of their layers, and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._pytree import tree_leaves

from rbnorm.models.files import packed, parse_json, replace, state_in
from rbnorm.models.record import convert_as_recorded, record_layers

__all__ = ["from_pretrained", "load", "save", "save_pretrained"]

Model = TypeVar("Model", bound=nn.Module)
Folder = str | PathLike[str]

CONFIG: Final = "config.json"
RECORD: Final = "rbnorm.json"
WEIGHTS: Final = "model.safetensors"
# With these timm would fetch weights, or read files that the folder does not have.
_FORBIDDEN: Final = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")
# No argument of a real model is larger.
_LARGEST: Final = 2**20
_BROKEN: Final = (KeyError, TypeError, AttributeError, ValueError, RuntimeError)


def save(model: nn.Module, folder: Folder) -> None:
    """Write any model, some or all of whose BatchNorm layers became RBN, to a folder.

    The folder gets ``rbnorm.json`` (the record of the RBN layers, see
    :func:`rbnorm.record_layers`) and ``model.safetensors`` (the state dict), each written whole or
    not at all. Needs safetensors, which the extra ``lab`` has.

    Args:
        model: The model.
        folder: Made where it does not exist; these two files are replaced, others stay.

    Raises:
        ValueError: The model has no RBN layer, one with a callable option, or a tensor that a file
            cannot hold. Nothing is written.
    """
    _write(folder, RECORD, record_layers(model), model.state_dict())


def load(model: Model, folder: Folder) -> Model:
    """Build, convert as recorded, then load: what :func:`save` wrote, into a model of your code.

    Nothing in the files is run.

    Args:
        model: The model as it is built, with BatchNorm where RBN was saved, or with the same RBN.
        folder: Where ``rbnorm.json`` and ``model.safetensors`` are. The weights may also be those
            that another library's ``save_pretrained`` wrote.

    Returns:
        ``model`` itself, converted and loaded, in the mode it was in.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: A file is broken, or does not fit the model or the other file.
    """
    record, state = _read(folder, RECORD)
    with _named(folder, "a model of rbnorm.hub.save"):
        convert_as_recorded(model, record)
        model.load_state_dict(state)
    return model


def save_pretrained(model: nn.Module, folder: Folder, name: str, **model_args: object) -> None:
    """Write a timm model, some or all of whose BatchNorm layers became RBN, to a folder.

    The folder gets ``config.json`` (the architecture, its arguments, and the record of the RBN
    layers) and ``model.safetensors`` (the state dict), each written whole or not at all. Any upload
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
    config = {"architecture": name, "model_args": model_args, "rbnorm": record_layers(model)}
    state = model.state_dict()
    try:
        _check(config, state)
    except RuntimeError as error:
        raise ValueError(
            f"model must be timm's {name} with the arguments {model_args}, got {_line(error)}"
        ) from error
    _write(folder, CONFIG, config, state)


def from_pretrained(folder: Folder) -> nn.Module:
    """Build the model that :func:`save_pretrained` wrote, in evaluation mode on the CPU.

    Nothing is downloaded, and nothing in the files is run. A model is only given memory once it is
    known to have the tensors of the file.

    Args:
        folder: Where ``config.json`` and ``model.safetensors`` are.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: A file is broken, names no model of timm, or does not fit the other one.
    """
    config, state = _read(folder, CONFIG)
    with _named(folder, "a model of save_pretrained"), torch.device("cpu"):
        _check(config, state)
        model = _build(config)
        model.load_state_dict(state)
    return model.eval()


def _write(
    folder: Folder, name: str, content: Mapping[str, object], state: Mapping[str, Tensor]
) -> None:
    folder, weights = Path(folder), packed(state)
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model_args must be of JSON's types ({error})") from error
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / WEIGHTS, weights)
    replace(folder / name, f"{text}\n".encode())


def _read(folder: Folder, name: str) -> tuple[Any, dict[str, Tensor]]:
    folder = Path(folder)
    with _named(folder, f"{name} and {WEIGHTS}"):
        config = parse_json((folder / name).read_bytes())
        return config, state_in((folder / WEIGHTS).read_bytes(), Path(WEIGHTS))


@contextmanager
def _named(folder: Folder, wanted: str) -> Iterator[None]:
    """Put what goes wrong with a folder's content into one sentence."""
    try:
        yield
    except _BROKEN as error:
        raise ValueError(f"{folder} must hold {wanted}, got {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check(config: Any, state: Mapping[str, Tensor]) -> None:
    """Raise what a model of the config does when it cannot hold the state; it gets no memory."""
    with _at_most(len(state)), torch.device("meta"):
        _build(config).load_state_dict(state, assign=True)


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Stop a model that is being built when it gets much larger than so many tensors make it."""
    # Modules without tensors are registered too, and parameters are set more than once.
    limit, count = 100 * tensors + 10_000, 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise ValueError(f"model_args ask for far more than the {tensors} tensors there are")

    handles = [hooks.register_module_parameter_registration_hook(one_more)]
    handles.append(hooks.register_module_module_registration_hook(one_more))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _build(config: Any) -> nn.Module:
    """The model of a config, without its weights."""
    import timm  # noqa: PLC0415 - the other functions do without

    name, arguments = config["architecture"], config["model_args"]
    for argument in set(_FORBIDDEN).intersection(arguments):
        raise ValueError(f"model_args must not have {argument!r}: the weights are in the folder")
    numbers = (leaf for leaf in tree_leaves(arguments) if isinstance(leaf, int | float))
    if any(abs(number) > _LARGEST for number in numbers):
        raise ValueError(f"model_args must not have numbers above {_LARGEST}, got {arguments}")
    if not timm.is_model(name):
        raise ValueError(f"name must be one of timm's models, got {name!r}")
    model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return convert_as_recorded(model, config["rbnorm"])
