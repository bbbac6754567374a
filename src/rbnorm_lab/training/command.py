"""``rbnorm train``: one run with checkpoints, from what was asked for to its record."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from accelerate import Accelerator
from filelock import FileLock, Timeout

from rbnorm_lab.config import LR_BATCH_SIZE, STEPS, RunConfig
from rbnorm_lab.data import ImageData, load_data
from rbnorm_lab.errors import UsageError, at_least
from rbnorm_lab.folders import make_folder
from rbnorm_lab.models import needs_rgb
from rbnorm_lab.norms import canonical_norm
from rbnorm_lab.processes import make_accelerator
from rbnorm_lab.progress import progress_of_runs, terminal
from rbnorm_lab.store import Store
from rbnorm_lab.train import check_run, steps_of, train_run
from rbnorm_lab.training import checkpoint
from rbnorm_lab.training.loop import Training

_NAMES: Final = {"train": "training", "test": "held out"}


def config_of(options: Mapping[str, Any], processes: int) -> RunConfig:
    """The run that the options of the command ask for.

    Raises:
        UsageError: A value is out of range, or nothing is known by its name.
    """
    size = options["batch_size"]
    return RunConfig.of(
        options,
        norm=canonical_norm(options["norm"]),
        lr=options["lr"] * size / LR_BATCH_SIZE[STEPS],
        processes=processes,
        norm_batch=parts(size, processes, options["accumulate"]),
        recipe=STEPS,
    )


def parts(batch_size: int, processes: int, accumulate: int) -> int | None:
    """Images of one of ``accumulate`` forward passes in one process; None for a single pass.

    Raises:
        UsageError: The passes cannot share a batch equally.
    """
    at_least(1, accumulate=accumulate)
    if batch_size % (processes * accumulate):
        raise UsageError(
            f"batch size {batch_size} must be a multiple of processes times passes, "
            f"{processes} x {accumulate}"
        )
    return None if accumulate == 1 else batch_size // (processes * accumulate)


def train(config: RunConfig, out: Path, data_root: Path | None) -> None:
    """Train from the newest checkpoint in ``out`` on.

    Under ``torchrun`` or ``accelerate launch`` every process calls this; the main one prints and
    writes, and all read.

    Args:
        config: The run.
        out: Folder of the checkpoints and the record.
        data_root: Where the files of data sets are; see :func:`rbnorm_lab.data.load_data`.

    Raises:
        UsageError: The run cannot be made or continued as asked.
    """
    accelerator = make_accelerator(config.mixed_precision)
    data = load_data(
        config.data,
        data_root,
        rgb=needs_rgb(config.model),
        limit=config.limit,
        image_size=config.image_size,
    )
    check_run(config, data, accelerator.device)
    with _only_writer(out, accelerator):
        _train(config, data, accelerator, out)
    accelerator.end_training()


def _train(config: RunConfig, data: ImageData, accelerator: Accelerator, out: Path) -> None:
    store = Store(out)
    console = terminal(quiet=not accelerator.is_main_process)
    if config.key in store.records:
        console.print(f"Nothing left to train: {config.epochs} epochs are done.", soft_wrap=True)
        return
    found = checkpoint.newest(out)
    done = int(found.name.removeprefix("step-")) if found else 0

    def say(training: Training) -> None:
        head = f"epoch {training.epoch}/{config.epochs}"
        metrics = sentence(training.history[-1])
        console.print(f"{head}: {metrics}; {training.rate:,.0f} images/s", soft_wrap=True)

    bars = progress_of_runs(24, disable=not accelerator.is_main_process, console=console)
    with bars as progress:
        task = progress.add_task(config.model, total=steps_of(config, data), completed=done)
        record = train_run(
            config,
            data,
            lambda: progress.advance(task),
            on_epoch=say,
            folder=out,
            accelerator=accelerator,
        )
    if accelerator.is_main_process:
        store.append(record)
    console.print(f"Checkpoint: {checkpoint.newest(out)}", soft_wrap=True)


@contextmanager
def _only_writer(out: Path, accelerator: Accelerator) -> Iterator[None]:
    """The folder, made, for this run alone."""
    if not accelerator.is_main_process:
        yield
        return
    make_folder(out)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UsageError(f"another process is training in {out}: choose another --out") from error
    with lock:
        yield


def sentence(metrics: dict[str, float]) -> str:
    """Losses and accuracies in words."""
    return "; ".join(
        f"{words}: loss {metrics[f'{name}_loss']:.4f}, "
        f"accuracy {100 * metrics[f'{name}_accuracy']:.2f} %"
        for name, words in _NAMES.items()
        if f"{name}_loss" in metrics
    )
