"""Files written whole or not at all, and state dicts in them, read without running code."""

from __future__ import annotations

import glob
import io
import json
import os
import pickle
import secrets
import stat
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

SUFFIXES: Final = (".safetensors", ".pt", ".pth")
"""Of files that :func:`packed` knows the format of."""

_ABANDONED: Final = 600.0  # seconds since a write: nothing is written that slowly
_MOST_REPEATED: Final = 2**26  # bytes that views of the same memory may become
_NESTED: Final = ("state_dict", "model", "model_state_dict")  # where training scripts put it

State = dict[str, Tensor]


def replace(path: Path, content: bytes) -> None:
    """Write a file, or leave what was there.

    A new file has the mode that the umask leaves, one that was there keeps its own. What another
    process left unfinished when it was killed is removed.

    Raises:
        OSError: The system refuses; it names ``path``.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        for old in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
            if time.time() - old.lstat().st_mtime > _ABANDONED:
                old.unlink()
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            if path.exists():
                os.chmod(part, stat.S_IMODE(path.stat().st_mode))
            os.replace(part, path)
        except BaseException:
            part.unlink()
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: It is none, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_tensors(state: Mapping[str, object]) -> None:
    """Refuse what cannot be copied into a file of plain tensors.

    Raises:
        ValueError: An entry is no tensor, or one that is sparse or nested, has no memory, or
            repeats a little memory into a lot. The sentence begins with its name.
    """
    for name, tensor in state.items():
        fault = _fault(tensor)
        if fault:
            raise ValueError(
                f"entry {name!r} is {fault}: accepted are dense tensors with memory of their own"
            )


def _fault(tensor: object) -> str | None:
    if not isinstance(tensor, Tensor):  # what a module's get_extra_state returned
        return f"a {type(tensor).__name__}"
    if tensor.is_nested or tensor.layout is not torch.strided:
        return "sparse or nested"
    if tensor.is_meta:
        return "on the device meta, which has no memory"
    size, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    return f"{stored} bytes repeated to {size}" if size > max(stored, _MOST_REPEATED) else None


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
    return state_in(content, path)


def state_in(content: bytes, path: Path) -> State:
    """:func:`read_state` of what stands in a file."""
    library = _safetensors() if path.suffix == SUFFIXES[0] else None
    try:
        with warnings.catch_warnings():  # about formats that are refused anyway
            warnings.simplefilter("ignore")
            found = (
                library.load(content)
                if library
                else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            )
    except Exception as error:  # an unpickler meets broken bytes with any exception
        kind = isinstance(error, pickle.UnpicklingError)
        fault = "holds objects that could run code when they are loaded, or is no checkpoint"
        raise ValueError(
            f"{path} {fault if kind else 'is truncated or no checkpoint'}: accepted are state "
            "dicts, in a file of safetensors or of torch.save"
        ) from error
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} holds no state dict, which has a tensor for every name")
    try:
        check_tensors(found)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return dict(found)


def _safetensors() -> Any:
    """The library, which comes with the extra ``lab``."""
    try:
        import safetensors.torch  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(
            'a .safetensors file needs safetensors: install it with pip install "rbnorm[lab]"'
        ) from error
    return safetensors.torch


def packed(
    state: Mapping[str, Tensor], suffix: str = SUFFIXES[0], metadata: dict[str, str] | None = None
) -> bytes:
    """A state dict as the content of a file: each tensor by itself, with no memory in common.

    Args:
        state: The state dict.
        suffix: One of :data:`SUFFIXES`, which names the format.
        metadata: What a file of safetensors says beside the tensors.

    Raises:
        ValueError: The format cannot hold an entry; or it is safetensors, which is missing.
    """
    library = _safetensors() if suffix == SUFFIXES[0] else None
    check_tensors(state)
    whole = torch.contiguous_format
    own = {name: t.detach().cpu().clone(memory_format=whole) for name, t in state.items()}
    if library is None:
        file = io.BytesIO()
        torch.save(own, file)
        return file.getvalue()
    if "__metadata__" in own:
        raise ValueError("entry '__metadata__' has the name that safetensors keeps for itself")
    try:
        return library.save(own, metadata or {"format": "pt"})  # type: ignore[no-any-return]
    except (KeyError, ValueError) as error:
        raise ValueError(f"has an entry that safetensors cannot hold ({error})") from error
