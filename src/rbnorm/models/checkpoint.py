"""State dicts in files: read without running code, converted layer by layer, packed again."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from rbnorm.layers.base import bias_option
from rbnorm.layers.classes import RepresentativeBatchNorm2d
from rbnorm.layers.options import NAMES
from rbnorm.models.convert import convert_batchnorm
from rbnorm.models.files import check_tensors, own_tensors, safetensors_of

SUFFIXES: Final = (".safetensors", ".pt", ".pth")
"""Of files that :func:`packed` knows the format of."""

_BUFFERS: Final = ("running_mean", "running_var", "num_batches_tracked")
_NESTED: Final = ("state_dict", "model", "model_state_dict")  # where training scripts put it

State = dict[str, Tensor]


def read_state(path: Path) -> State:
    """The state dict in a file; nothing in the file is run.

    Args:
        path: A file of safetensors, or of ``torch.save`` with tensors and plain values: a state
            dict, or a dict with one under "state_dict", "model" or "model_state_dict".

    Raises:
        ValueError: There is no such file, or no state dict in it that can be read like that.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    found = _parsed(content, path)
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not _is_state(found):
        raise ValueError(f"{path} holds no state dict, which has a tensor for every name")
    try:
        check_tensors(found)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return dict(found)


def _is_state(found: object) -> bool:
    return isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    )


def _parsed(content: bytes, path: Path) -> Any:
    packed = _safetensors() if path.suffix == SUFFIXES[0] else None
    try:
        if packed:
            return packed.load(content)
        with warnings.catch_warnings():  # about formats that are refused anyway
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler meets broken bytes with any exception
        kind = isinstance(error, pickle.UnpicklingError)
        fault = "holds objects that could run code when they are loaded, or is no checkpoint"
        raise ValueError(
            f"{path} {fault if kind else 'is truncated or no checkpoint'}: accepted are state "
            "dicts, in a file of safetensors or of torch.save"
        ) from error


def _safetensors() -> Any:
    """The library, which comes with the extra ``lab``."""
    try:
        import safetensors.torch  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(
            'a .safetensors file needs safetensors: install it with pip install "rbnorm[lab]"'
        ) from error
    return safetensors.torch


def packed(state: State, suffix: str) -> bytes:
    """A state dict as the content of a file with one of :data:`SUFFIXES`.

    Raises:
        ValueError: The format cannot hold an entry; or it is safetensors, which is missing.
    """
    if suffix == SUFFIXES[0]:
        _safetensors()
        return safetensors_of(state, {"format": "pt"})
    file = io.BytesIO()
    torch.save(own_tensors(state), file)
    return file.getvalue()


def convert_state(state: State) -> tuple[State, str]:
    """The state dict for rbnorm's layers, and what was done in words.

    Without any calibration every BatchNorm, which is what has ``running_mean`` and ``running_var``,
    becomes RBN of the same function, as with :func:`rbnorm.convert_batchnorm`. With one the RBN
    layers' vectors get the shape (C,), whatever they were, and nothing else changes.

    Raises:
        ValueError: It has neither BatchNorm nor RBN, or a layer's entries do not fit together; the
            sentence lacks its subject.
    """
    calibrated = _owners(state, NAMES)
    prefixes = calibrated or [p for p in _owners(state, _BUFFERS[:1]) if f"{p}running_var" in state]
    if not prefixes:
        raise ValueError(
            "has neither BatchNorm nor RBN layers: no entry is named running_mean, running_var or "
            f"{', '.join(NAMES)}"
        )
    result = dict(state)
    for prefix in prefixes:
        names = ("weight", "bias", *_BUFFERS, *NAMES)
        own = {n: state[prefix + n].clone() for n in names if prefix + n in state}
        try:
            layer = _rbn(own) if calibrated else _from_batchnorm(own)
        except (RuntimeError, IndexError, ValueError) as error:
            said = " ".join(line.strip() for line in str(error).splitlines()[-1:])
            raise ValueError(
                f"has a layer {prefix.rstrip('.')!r} whose entries do not fit together "
                f"({said.rstrip('.')})"
            ) from error
        result |= {prefix + name: tensor for name, tensor in layer.state_dict().items()}
    if not calibrated:
        return result, f"{len(prefixes)} BatchNorm layers became RBN of the same function"
    reshaped = any(state[name].shape != result[name].shape for name in state)
    origin = "the official implementation's shapes" if reshaped else "rbnorm's own shapes already"
    return result, f"{len(prefixes)} RBN layers in {origin}"


def _owners(state: State, names: tuple[str, ...]) -> list[str]:
    """The prefix of every layer that has an entry of one of these names."""
    parts = (key.rpartition(".") for key in state)
    return list(dict.fromkeys(owner + dot for owner, dot, name in parts if name in names))


def _from_batchnorm(own: State) -> nn.Module:
    options = bias_option("bias" in own or "weight" not in own)
    layer = nn.BatchNorm2d(
        own["running_mean"].numel(), affine="weight" in own, device="meta", **options
    )
    layer.load_state_dict(own, assign=True)
    return convert_batchnorm(layer)


def _rbn(own: State) -> nn.Module:
    layer = RepresentativeBatchNorm2d(
        next(own[name] for name in NAMES if name in own).numel(),
        affine="weight" in own,
        track_running_stats="running_mean" in own,
        bias="bias" in own or "weight" not in own,
        center="center_weight" in own,
        scale="scale_weight" in own or "scale_bias" in own,
        device="meta",
    )
    layer.load_state_dict(own, assign=True)
    return layer
