"""The one kind of error that is the user's to mend."""


class UsageError(ValueError):
    """What was asked for cannot be done.

    The message is one sentence: what was wrong, what was given, what is accepted. The command line
    prints it and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand in a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
