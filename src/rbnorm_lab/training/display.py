"""What is seen of a run: a bar with the throughput, a line for every epoch, a tracker's curves."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from accelerate import Accelerator
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rbnorm_lab.errors import UsageError
from rbnorm_lab.progress import terminal, text
from rbnorm_lab.training.loop import Training

_EVERY: Final = 50  # steps between two points of a tracker's curves
_NAMES: Final = {"train": "training", "test": "held out", "ema": "held out, average"}


class Display:
    """A bar where there is a terminal, and a line for every epoch; the main process's only.

    Args:
        training: The run.
        accelerator: Its trackers get the numbers too.
    """

    def __init__(self, training: Training, accelerator: Accelerator) -> None:
        self.training, self.accelerator = training, accelerator
        self.epochs = training.config.epochs
        self.console = terminal(quiet=not accelerator.is_main_process)
        columns = (
            text("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            text("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        seen = accelerator.is_main_process and self.console.is_terminal
        self.progress = Progress(*columns, console=self.console, disable=not seen)
        self.steps = self.progress.add_task("", total=None, note="")
        self._begin()

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def _begin(self) -> None:
        """A new epoch, or the rest of one."""
        training = self.training
        self.first, self.start = training.step, time.perf_counter()
        self.progress.reset(
            self.steps,
            total=training.epoch_steps,
            completed=training.step % training.epoch_steps,
            description=f"epoch {training.epoch + 1}/{self.epochs}",
            visible=training.epoch < self.epochs,
            note="",
        )

    def _rate(self) -> float:
        """Images in a second, over all processes, in this epoch."""
        images = (self.training.step - self.first) * self.training.config.batch_size
        return images / (time.perf_counter() - self.start)

    def stepped(self) -> None:
        """After every step."""
        rate = self._rate()
        self.progress.update(self.steps, advance=1, note=f"{rate:,.0f} images/s")
        if self.training.step % _EVERY == 0 and self.accelerator.trackers:
            values = {
                "train/loss": self.training.loss.item(),
                "train/lr": self.training.lr,
                "train/images_per_second": rate,
            }
            self._log(values)

    def evaluation(
        self, evaluate: Callable[[Callable[[], None]], dict[str, float]]
    ) -> dict[str, float]:
        """Evaluate with a bar of its own."""
        task = self.progress.add_task("evaluation", total=self.training.evaluation_batches, note="")
        metrics = evaluate(lambda: self.progress.advance(task))
        self.progress.remove_task(task)
        return metrics

    def ended(self) -> None:
        """After the last step of every epoch: evaluate, and say what was found.

        Raises:
            UsageError: The training loss is not finite.
        """
        self.training.check_finite()
        rate = self._rate()
        metrics = self.evaluation(self.training.end_epoch)
        head = f"epoch {self.training.epoch}/{self.epochs}"
        self.say(f"{head}: {sentence(metrics)}; {rate:,.0f} images/s")
        self._log({name.replace("_", "/", 1): value for name, value in metrics.items()})
        self._begin()

    def _log(self, values: dict[str, float]) -> None:
        with tracking():
            self.accelerator.log(values, step=self.training.step)

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, soft_wrap=True)


@contextmanager
def tracking() -> Iterator[None]:
    """Around what makes a tracker write.

    Raises:
        UsageError: It cannot.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"the tracker cannot write ({error.strerror}): the checkpoints are as they were, and "
            "the same command continues once it can, or with --tracker none"
        ) from error


def sentence(metrics: dict[str, float]) -> str:
    """Losses and accuracies in words."""
    return "; ".join(
        f"{words}: loss {metrics[f'{name}_loss']:.4f}, "
        f"accuracy {100 * metrics[f'{name}_accuracy']:.2f} %"
        for name, words in _NAMES.items()
        if f"{name}_loss" in metrics
    )
