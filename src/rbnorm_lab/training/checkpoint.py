"""A run on disk: one folder for a checkpoint, there as a whole or not at all."""

import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from rbnorm.models.files import parse_json, safetensors_of
from rbnorm_lab.errors import UsageError
from rbnorm_lab.state_files import State, read_state

SCHEMA: Final = 2
MODEL: Final = "model.safetensors"
EMA: Final = "ema.safetensors"
STATE: Final = "state.pt"
HISTORY: Final = "history.json"

_KEPT: Final = 2  # the one before the newest is there for the day that the newest is broken
_NAME: Final = re.compile(r"step-\d{10}")
_FILES: Final = frozenset({MODEL, EMA, STATE, HISTORY})
_SCRATCH: Final = ".rbnorm-step-"
_WHOLE: Final = "whole"


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on.

    Attributes:
        identity: :meth:`rbnorm_lab.training.loop.Training.identity`.
        step: Optimiser steps taken.
        model: The state dict of the model.
        ema: That of the average of its weights, if there is one.
        optimizer: The state dict of the optimiser.
        scheduler: That of the learning rate.
        scaler: That of the scaler of float16 gradients, if there is one.
        totals: The sums of the current epoch: losses, their number, and what the task counts.
        history: The metrics of the epochs that ended.
        seconds: Their durations.
    """

    identity: dict[str, Any]
    step: int
    model: State
    ema: State | None
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scaler: dict[str, Any] | None
    totals: list[float]
    history: list[dict[str, float]]
    seconds: list[float]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint below a folder and remove those that it makes superfluous.

    Raises:
        UsageError: It cannot be written. Those before it are as they were.
    """
    target = folder / f"step-{checkpoint.step:010d}"
    state = {"schema": SCHEMA, **vars(checkpoint)}
    for name in ("model", "ema", "history"):
        del state[name]
    try:
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as scratch:
            whole = Path(scratch, _WHOLE)
            whole.mkdir()
            _write(whole / MODEL, safetensors_of(checkpoint.model, {"format": "pt"}))
            if checkpoint.ema:
                _write(whole / EMA, safetensors_of(checkpoint.ema, {"format": "pt"}))
            _write(whole / STATE, _packed(state))
            _write(whole / HISTORY, json.dumps(checkpoint.history, indent=1).encode() + b"\n")
            whole.rename(target)
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written ({error.strerror}): the checkpoints before it are as they "
            "were, and the same command continues once it can be"
        ) from error
    for old in _steps(folder)[:-_KEPT]:
        if _files(old) <= _FILES:
            # under another name first: a kill must not leave half of it under this one
            old.rename(Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder), _WHOLE))
    clear(folder)


def newest(folder: Path) -> Path | None:
    """The checkpoint to continue from, if there is one."""
    return max(_steps(folder), default=None)


def clear(folder: Path) -> None:
    """Remove what was being written or removed when a process was killed."""
    for scratch in folder.glob(f"{_SCRATCH}*"):
        if _files(scratch) <= {_WHOLE} and _files(scratch / _WHOLE) <= _FILES:
            shutil.rmtree(scratch)


def read(path: Path, identity: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint of this very run; nothing in the files is executed.

    Args:
        path: One of :func:`newest`.
        identity: What the run is; entries that it leaves out may be anything.

    Raises:
        UsageError: A file is broken, of another version, or of another run.
    """
    state = _unpacked(path / STATE)
    if state.pop("schema") != SCHEMA:
        raise UsageError(f"{path} is of another version of rbnorm: choose another --out")
    for name, given in identity.items():
        stored = state["identity"].get(name)
        if stored != given:
            raise UsageError(
                f"{path.parent} holds a run with {name.replace('_', ' ')} {stored}, not {given}: "
                "continue it as it was begun, or choose another --out"
            )
    return Checkpoint(
        model=read_state(path / MODEL),
        ema=read_state(path / EMA) if state["identity"]["ema"] else None,
        history=_history(path / HISTORY),
        **state,
    )


def _steps(folder: Path) -> list[Path]:
    """The checkpoints, from the oldest to the newest, among whatever else is there."""
    named = (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))
    return sorted(path for path in named if _files(path) & _FILES)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _packed(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _unpacked(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state["schema"], state["identity"]["ema"]
    except Exception as error:  # an unpickler meets broken bytes with any exception
        raise _broken(path) from error
    return state


def _history(path: Path) -> list[dict[str, float]]:
    try:
        history: list[dict[str, float]] = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _broken(path) from error
    return history


def _broken(path: Path) -> UsageError:
    return UsageError(
        f"{path} is missing or broken: remove {path.parent} to continue from the checkpoint before"
    )
