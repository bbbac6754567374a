"""The one kind of error that is the user's to mend, and checks of ranges that raise it."""

import math


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
