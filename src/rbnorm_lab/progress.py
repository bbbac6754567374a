"""What a command shows in the terminal: text as it is, and bars."""

import sys
from collections.abc import Callable
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

from rbnorm_lab.config import RunConfig
from rbnorm_lab.records import Failure, Record


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


class Report:
    """How runs go: a bar in a terminal, else a line for each that has ended.

    Args:
        what: What the runs are for.
    """

    def __init__(self, what: str) -> None:
        self.what, self.done = what, 0
        self.bar = progress_of_runs(32)
        self.all = self.bar.add_task(what, total=None)
        self.one = self.bar.add_task("", total=None, visible=False)

    def __enter__(self) -> "Report":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def steps_of(self, config: RunConfig) -> Callable[[], None]:
        """What to call after every step of a run that begins."""
        self.bar.reset(self.one, description=_name(config), visible=True)
        return lambda: self.bar.advance(self.one)

    def ended(self, result: Record | Failure, left: int) -> None:
        """A run has ended, and so many are left."""
        self.done += 1
        self.bar.update(self.all, completed=self.done, total=self.done + left)
        if not self.bar.console.is_terminal:
            line = f"{self.done} of {self.done + left}: {_name(result.config)}: {_outcome(result)}"
            print(line, file=sys.stderr, flush=True)


def _name(config: RunConfig) -> str:
    target = [config.target] if config.target else []
    return ", ".join([config.norm, *target, f"batch {config.batch_size}", f"seed {config.seed}"])


def _outcome(result: Record | Failure) -> str:
    if isinstance(result, Failure):
        return result.error
    reached = [f"{100 * result.accuracy:.1f} %"]
    if result.config.target:
        reached += [
            f"{where} {100 * v:.1f} %" for of in result.shifted.values() for where, v in of.items()
        ][:1]
    return ", ".join([*reached, f"{result.seconds:.0f} s"])
