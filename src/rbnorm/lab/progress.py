"""The bar of a command that makes many runs."""

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_of_runs(width: int, *, disable: bool = False) -> Progress:
    """A bar for each task: its description, what is done of how much, and the time it takes.

    Args:
        width: Characters for the description.
        disable: Show nothing.
    """
    return Progress(
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=disable,
    )
