"""The one kind of error that is the user's to mend, and checks of ranges that raise it."""

from rbnorm_cli.errors import UsageError, at_least, first_line, positive

__all__ = ["UsageError", "at_least", "first_line", "positive"]
