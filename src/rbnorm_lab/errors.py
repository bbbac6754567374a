"""The one kind of error that is the user's to mend, and checks of ranges that raise it."""

import math

from rbnorm_cli.errors import UsageError, first_line

__all__ = ["UsageError", "at_least", "first_line", "positive"]


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
