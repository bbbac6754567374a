"""What a command shows in the terminal: text as it is, and bars."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more: for the command to say, not for rich."""
        raise BrokenPipeError


def terminal(**options: Any) -> Console:
    """A console that prints names as they are, with their brackets and colons.

    Args:
        options: Of rich's ``Console``; it prints on standard output, unless ``stderr`` is set.
    """
    options.setdefault("file", sys.stderr if options.pop("stderr", False) else sys.stdout)
    return _Terminal(markup=False, emoji=False, highlight=False, **options)


def text(template: str) -> TextColumn:
    """A column of a bar that shows names as they are."""
    return TextColumn(template, markup=False)


def progress_of_runs(
    width: int, *, disable: bool = False, console: Console | None = None
) -> Progress:
    """A bar for each task: its description, what is done of how much, and the time it takes.

    Args:
        width: Characters for the description.
        disable: Show nothing, as where the console is no terminal.
        console: Where to show it; standard error unless given, as nobody may read the output.
    """
    console = console or terminal(stderr=True)
    return Progress(
        text(f"{{task.description:<{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=disable or not console.is_terminal,
    )
