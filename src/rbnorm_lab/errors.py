"""The one kind of error that is the user's to mend, and checks of ranges that raise it."""

import math
from collections.abc import Mapping
from typing import Any, Final

LEAST: Final = {
    "accumulate": 1,
    "batch_size": 1,
    "decay_every": 1,
    "epochs": 1,
    "few_seeds": 1,
    "fine_tune": 1,
    "image_size": 1,
    "limit": 1,
    "norm_batch": 1,
    "pretrain_epochs": 0,
    "processes": 1,
    "repeats": 1,
    "seed": 0,
    "seeds": 1,
    "test_limit": 1,
    "tuning_epochs": 1,
    "tuning_seeds": 1,
    "workers": 0,
}
"""The least that an option, or a field of a config, may be."""


class UsageError(ValueError):
    """What was asked for cannot be done.

    The message is one sentence: what was wrong, what was given, what is accepted. The command line
    prints it and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand in a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def at_least(least: int, **values: int | None) -> None:
    """Raise UsageError where one of these values, if there is one, is less."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"{name.replace('_', ' ')} must be at least {least}, not {value}")


def positive(**values: float | None) -> None:
    """Raise UsageError where one of these values, if there is one, is no positive number."""
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name.replace('_', ' ')} must be a positive number, not {value}")


def check_least(values: Mapping[str, Any]) -> None:
    """Raise UsageError where one of these values, if there is one, is less than it may be."""
    for name in LEAST.keys() & values.keys():
        at_least(LEAST[name], **{name: values[name]})
