"""The one kind of error that is the user's to mend; the command line's."""

from rbnorm_cli.errors import UsageError, first_line

__all__ = ["UsageError", "first_line"]
