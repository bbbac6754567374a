"""Models in files: kept by a comparison, or the user's own."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn

from rbnorm.layers.options import NAMES
from rbnorm.models.convert import convert_batchnorm
from rbnorm.models.files import State, packed, parse_json, read_state, replace
from rbnorm_lab.config import RunConfig
from rbnorm_lab.data import ImageData
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.models import build_model, model_name
from rbnorm_lab.names import model_file


class Saved(NamedTuple):
    """What a file of :func:`save_model` says of its model."""

    config: RunConfig
    classes: int
    channels: int


def saved_path(folder: Path, config: RunConfig) -> Path:
    """Where the model of a run is kept."""
    norm = config.norm.replace(":", "-")  # some file systems have no colon
    name = f"{norm}-batch{config.batch_size}-seed{config.seed}-{config.key[:8]}"
    return folder / f"{name}.safetensors"


def save_model(model: nn.Module, config: RunConfig, data: ImageData, path: Path) -> None:
    """Keep a trained model, with what is needed to build it again.

    Raises:
        OSError: The system refuses; what was there is as it was.
    """
    facts = {"config": config.to_dict(), "classes": data.classes, "channels": data.channels}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, packed(model.state_dict(), metadata={"rbnorm": json.dumps(facts)}))


def read_saved(path: Path) -> Saved | None:
    """What the file says, or None if it is none of :func:`save_model`."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = parse_json((file.metadata() or {}).get("rbnorm", "null"))
        if facts is None:
            return None
        return Saved(RunConfig.from_dict(facts["config"]), facts["classes"], facts["channels"])
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise UsageError(f"{path} cannot be read ({first_line(error)})") from error


def load_model(spec: str, checkpoint: Path | None, *, classes: int, channels: int) -> nn.Module:
    """The model to diagnose.

    Args:
        spec: A name as for :func:`rbnorm_lab.models.model_name`; or the path of a file of
            :func:`save_model`, of ``torch.save(model)``, or of Python with a function ``model``.
        checkpoint: A state dict, whose RBN layers the model's BatchNorm layers become; or None.
        classes: Number of classes, for a name.
        channels: Channels of the images, for a name.

    Raises:
        UsageError: There is no such model or file, or they do not fit together.
    """
    path = model_file(spec)
    if path:
        saved = read_saved(path)
        if saved:
            model = _built(saved.config.model, saved.config.norm, saved.classes, saved.channels)
            load_weights(model, path)
        else:
            model = _python(path) if path.suffix == ".py" else _pickled(path)
    else:
        model = _built(model_name(spec), "bn", classes, channels)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model


def _built(name: str, norm: str, classes: int, channels: int) -> nn.Module:
    return build_model(name, norm, classes=classes, channels=channels, seed=0)


def _python(path: Path) -> nn.Module:
    source = importlib.util.spec_from_file_location(path.stem, path)
    assert source is not None
    assert source.loader is not None
    module = importlib.util.module_from_spec(source)
    try:
        source.loader.exec_module(module)
        model = module.model()
    except Exception as error:
        raise UsageError(f"--model {path} did not make a model ({first_line(error)})") from error
    return _checked(path, model)


def _pickled(path: Path) -> nn.Module:
    try:
        model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle may raise anything
        raise UsageError(f"--model {path} cannot be read ({first_line(error)})") from error
    return _checked(path, model)


def _checked(path: Path, model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"--model {path} holds a {type(model).__name__} and no model: weights belong to "
            "--checkpoint, and --model names what to load them into"
        )
    return model


def read_weights(path: Path) -> State:
    """The state dict in a file; nothing in the file is run.

    Raises:
        UsageError: There is no such file, or no state dict in it.
    """
    try:
        return read_state(path)
    except ValueError as error:
        raise UsageError(str(error)) from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict; BatchNorm layers become RBN where it has a calibration.

    Raises:
        UsageError: The file cannot be read, or does not fit the model.
    """
    # Distributed training puts a prefix before every name.
    state = {name.removeprefix("module."): tensor for name, tensor in read_weights(path).items()}
    try:
        for part in ((True, True), (True, False), (False, True)):
            _calibrate(model, state, *part)
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = " ".join(lines[:2]).rstrip(".")
        raise UsageError(f"{path} does not fit the model ({said})") from error


def _calibrate(model: nn.Module, state: dict[str, Tensor], center: bool, scale: bool) -> None:
    def chosen(name: str) -> bool:
        prefix = f"{name}." if name else ""
        has = [f"{prefix}{parameter}" in state for parameter in NAMES[:2]]
        return has == [center, scale] and not hasattr(model.get_submodule(name), "calibration")

    names = {n for n, m in model.named_modules() if chosen(n)}
    if names:
        convert_batchnorm(
            model, preserve=False, where=names.__contains__, center=center, scale=scale
        )
