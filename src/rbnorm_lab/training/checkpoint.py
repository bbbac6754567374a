"""A run on disk: accelerate's state in one folder, there as a whole or not at all."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

from accelerate.utils import broadcast_object_list

from rbnorm.models.files import parse_json, read_state
from rbnorm_lab.checkpoints import save_model
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.training.loop import Training

SCHEMA: Final = 4
RUN: Final = "run.json"
MODEL: Final = "model.safetensors"

_KEPT: Final = 2  # the one before the newest is there for the day that the newest is broken
_NAME: Final = re.compile(r"step-\d{10}")
_SCRATCH: Final = ".rbnorm-unfinished"


def newest(folder: Path) -> Path | None:
    """The checkpoint to continue from, if there is one: the main process's answer for all."""
    found: Path | None = broadcast_object_list([max(_steps(folder), default=None)])[0]
    return found


def save(training: Training, folder: Path) -> None:
    """Write a checkpoint below a folder and remove those that it makes superfluous.

    All processes take part.

    Raises:
        UsageError: A file cannot be written. The checkpoints before it are as they were.
    """
    accelerator, scratch = training.accelerator, folder / _SCRATCH
    target = folder / f"step-{training.step:010d}"
    if accelerator.is_main_process:  # of a process that was killed
        shutil.rmtree(scratch, ignore_errors=True)
    accelerator.wait_for_everyone()

    def keep_model(_: Any, weights: list[Any], __: str) -> None:
        weights.clear()  # it is a trained model in a file, not what accelerate has wrapped it in
        if accelerator.is_main_process:
            save_model(training.module, training.config, training.data, scratch / MODEL)

    hook = accelerator.register_save_state_pre_hook(keep_model)
    try:
        accelerator.save_state(str(scratch))
        if accelerator.is_main_process:
            facts = {"schema": SCHEMA, **training.facts()}
            (scratch / RUN).write_text(json.dumps(facts, indent=1) + "\n")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _publish(scratch, target)
    except (OSError, RuntimeError) as error:  # the latter is torch's, of a disk that is full
        raise UsageError(
            f"{target} cannot be written ({getattr(error, 'strerror', None) or first_line(error)})"
            ": the checkpoints before it are as they were, and the same command continues once it "
            "can be"
        ) from error
    finally:
        hook.remove()


def _publish(scratch: Path, target: Path) -> None:
    names = set()
    for path in scratch.iterdir():
        names.add(path.name)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    scratch.rename(target)
    for old in _steps(target.parent)[:-_KEPT]:
        if {path.name for path in old.iterdir()} <= names:  # the user keeps nothing in it
            old.rename(scratch)  # a kill must not leave half of it under its name
            shutil.rmtree(scratch)


def load(training: Training, path: Path) -> None:
    """Go to where another process with this config stood; nothing in the files is executed.

    Args:
        training: The run at its start.
        path: One of :func:`newest`.

    Raises:
        UsageError: A file is broken, of another version, or of another run.
    """

    def read_model(models: list[Any], _: str) -> None:
        models.clear()
        training.module.load_state_dict(read_state(path / MODEL))

    facts = _facts(path)
    for name, given in training.identity().items():
        stored = facts["identity"].get(name)
        if stored != given:
            raise UsageError(
                f"{path.parent} holds a run with {name.replace('_', ' ')} {stored}, not {given}: "
                "continue it as it was begun, or choose another --out"
            )
    hook = training.accelerator.register_load_state_pre_hook(read_model)
    try:
        training.accelerator.load_state(str(path))
        training.restore(facts)
    except Exception as error:  # an unpickler meets broken bytes with any exception
        raise _broken(path, error) from error
    finally:
        hook.remove()


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = parse_json((path / RUN).read_bytes())
        schema, _ = facts["schema"], facts["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, error) from error
    if schema != SCHEMA:
        raise UsageError(f"{path} is of another version of rbnorm: choose another --out")
    return facts


def _broken(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"{path} is broken or of another version of rbnorm ({first_line(error)}): remove it to "
        "continue from the checkpoint before"
    )


def _steps(folder: Path) -> list[Path]:
    """The checkpoints, from the oldest to the newest, among whatever else is there."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(path for path in found if (path / RUN).exists() or (path / MODEL).exists())
