"""Files written whole or not at all, and what stands in them checked before it is used."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

_ABANDONED: Final = 600.0  # seconds since a write: nothing is written that slowly
_MOST_REPEATED: Final = 2**26  # bytes that views of the same memory may become


def replace(path: Path, content: bytes) -> None:
    """Write a file, or leave what was there.

    A new file has the mode that the umask leaves, one that was there keeps its own. What another
    process left unfinished when it was killed is removed.

    Raises:
        OSError: The system refuses; it names ``path``.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        _sweep(path)
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


def _sweep(path: Path) -> None:
    unfinished = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.part")
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if (
                unfinished.fullmatch(entry.name)
                and time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED
            ):
                os.unlink(entry.path)


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
    """Refuse tensors that cannot be copied into a file of plain ones.

    Raises:
        ValueError: A tensor is sparse, nested or quantised, has no memory or a type that nothing
            computes with, or repeats a little memory into a lot. The sentence begins with its name.
    """
    for name, tensor in state.items():
        fault = _fault(tensor)
        if fault:
            raise ValueError(
                f"entry {name!r} is {fault}: accepted are dense tensors of numbers with memory of "
                "their own"
            )


def _fault(tensor: object) -> str | None:
    if not isinstance(tensor, Tensor):  # what a module's get_extra_state returned
        return f"a {type(tensor).__name__}"
    faults = {
        "nested": tensor.is_nested,
        f"of layout {tensor.layout}": tensor.layout is not torch.strided,
        "on the device meta, which has no memory": tensor.is_meta,
        "quantised": tensor.is_quantized,
        f"of type {tensor.dtype}": not _counts(tensor.dtype),
    }
    fault = next((words for words, holds in faults.items() if holds), None)
    if fault:
        return fault
    size = tensor.numel() * tensor.element_size()
    stored = tensor.untyped_storage().nbytes()
    repeated = size > max(stored, _MOST_REPEATED)
    return f"{stored} bytes repeated to {size}" if repeated else None


def _counts(dtype: torch.dtype) -> bool:
    """Whether numbers of a type can be computed with; eight-bit floats are only stored."""
    if dtype.is_floating_point or dtype is torch.complex32:
        return dtype.is_floating_point
    try:
        torch.ones(1, dtype=dtype).add(1)
    except (RuntimeError, TypeError):
        return False
    return True


def own_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor by itself on the CPU, contiguous, with no memory in common."""
    contiguous = torch.contiguous_format
    return {n: t.detach().cpu().clone(memory_format=contiguous) for n, t in state.items()}


def safetensors_of(state: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A state dict as a file of safetensors, which the extra ``lab`` has.

    Raises:
        ValueError: An entry has the name of the format's own, is none that :func:`check_tensors`
            takes, or has a type that the format does not know.
    """
    import safetensors.torch  # noqa: PLC0415

    check_tensors(state)
    if "__metadata__" in state:
        raise ValueError("entry '__metadata__' has the name that safetensors keeps for itself")
    try:
        return safetensors.torch.save(own_tensors(state), metadata)
    except (KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f"has an entry that safetensors cannot hold ({error})") from error
