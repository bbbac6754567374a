"""``rbnorm train``: from what was asked for to a trained model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration, gather_object
from filelock import FileLock, Timeout

from rbnorm.lab.config import RunConfig
from rbnorm.lab.data import canonical_name as data_name
from rbnorm.lab.data import load_data
from rbnorm.lab.errors import UsageError
from rbnorm.lab.folders import check_folder, make_folder
from rbnorm.lab.models import canonical_name as model_name
from rbnorm.lab.models import needs_rgb
from rbnorm.lab.norms import canonical_norm
from rbnorm.lab.processes import count_processes, make_accelerator
from rbnorm.lab.train import check_run
from rbnorm.lab.training import checkpoint
from rbnorm.lab.training.display import Display, sentence, tracking
from rbnorm.lab.training.loop import Training
from rbnorm.lab.training.order import loaded, training_batches
from rbnorm.lab.training.recipe import LR_BATCH_SIZE, Recipe


@dataclass(frozen=True)
class Request:
    """What to train, or to evaluate; the fields are the options of the command line.

    Attributes:
        lr: Learning rate at batch size :data:`rbnorm.lab.training.recipe.LR_BATCH_SIZE`.
        checkpoint_every: Steps between two checkpoints within an epoch.
        tracker: A tracker that accelerate knows, or ``none``.
        evaluate: Only evaluate the newest checkpoint.
    """

    data: str
    model: str
    norm: str
    batch_size: int
    accumulate: int
    epochs: int
    lr: float
    decay_every: int
    weight_decay: float
    mixed_precision: str
    sync_norm: bool
    ema: float | None
    limit: int | None
    image_size: int | None
    seed: int
    data_root: Path | None
    workers: int
    checkpoint_every: int
    tracker: str
    evaluate: bool

    def recipe(self, processes: int) -> Recipe:
        """The run.

        Raises:
            UsageError: A field is out of range, or nothing is known by its name.
        """
        if self.checkpoint_every < 1:
            raise UsageError(f"checkpoint every must be at least 1, not {self.checkpoint_every}")
        run = RunConfig(
            data=data_name(self.data),
            model=model_name(self.model),
            norm=canonical_norm(self.norm),
            batch_size=self.batch_size,
            seed=self.seed,
            epochs=self.epochs,
            lr=self.lr * self.batch_size / LR_BATCH_SIZE,
            weight_decay=self.weight_decay,
            mixed_precision=self.mixed_precision,
            limit=self.limit,
            image_size=self.image_size,
            workers=self.workers,
            processes=processes,
        )
        return Recipe(run, self.accumulate, self.decay_every, self.ema, self.sync_norm)


def train(request: Request, out: Path) -> None:
    """Train from the newest checkpoint in ``out`` on, or only evaluate it.

    Under ``torchrun`` or ``accelerate launch`` every process calls this; the main one prints and
    writes, and all read.

    Raises:
        UsageError: The run cannot be made, continued or evaluated as asked.
    """
    check_folder(out)
    recipe = request.recipe(count_processes())
    accelerator = _accelerator(request, out)
    run = recipe.run
    data = load_data(
        run.data,
        request.data_root,
        rgb=needs_rgb(run.model),
        limit=run.limit,
        image_size=run.image_size,
        quiet=not accelerator.is_main_process,
    )
    found = checkpoint.newest(out)
    if request.evaluate and not found:
        raise UsageError(f"--evaluate: there is no checkpoint in {out}")
    if not found:
        trial = replace(run, batch_size=recipe.share * run.processes)
        check_run(trial, data, accelerator.device)
    training = Training(recipe, data, accelerator)
    _restore(training, found, evaluate=request.evaluate)
    if request.evaluate:
        with Display(training, accelerator, run.epochs) as display:
            metrics = display.evaluation(training.evaluate)
        display.say(f"step {training.step}: {sentence(metrics)}")
    else:
        with _only_writer(out, accelerator):
            _track(training, accelerator)
            _train(training, request, out)
    accelerator.end_training()


def _accelerator(request: Request, out: Path) -> Accelerator:
    tracker = None if request.evaluate or request.tracker == "none" else request.tracker
    known = [str(name) for name in LoggerType if name != LoggerType.ALL]
    if tracker and tracker not in known:
        raise UsageError(f"unknown tracker {tracker!r}: choose from none, {', '.join(known)}")
    if tracker and tracker not in map(str, get_available_trackers()):
        package = "rbnorm[train]" if tracker == str(LoggerType.TENSORBOARD) else tracker
        raise UsageError(
            f"tracker {tracker!r} is not installed: install it with "
            f'pip install "{package}", or give --tracker none'
        )
    return make_accelerator(
        request.mixed_precision,
        gradient_accumulation_steps=request.accumulate,
        log_with=tracker,
        project_config=ProjectConfiguration(logging_dir=str(out / "logs")),
    )


def _restore(training: Training, found: Path | None, *, evaluate: bool) -> None:
    identity = training.identity()
    if evaluate:
        del identity["processes"]
    stored = checkpoint.read(found, identity) if found else None
    steps = gather_object([stored.step if stored else 0])  # and nobody writes before all have read
    if len(set(steps)) > 1:
        raise UsageError(
            f"the processes found checkpoints of different steps, {steps}: --out must be on a file "
            "system that they share"
        )
    if stored:
        training.restore(stored)


@contextmanager
def _only_writer(out: Path, accelerator: Accelerator) -> Iterator[None]:
    """The folder, made and cleared, for this run alone."""
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
        checkpoint.clear(out)
        yield


def _track(training: Training, accelerator: Accelerator) -> None:
    config = {k: v if v is not None else "none" for k, v in training.identity().items()}
    with tracking():
        accelerator.init_trackers(
            "rbnorm",
            None if training.step else config,
            # the points of steps that a kill undid are taken again
            {"tensorboard": {"purge_step": training.step + 1}},
        )


def _train(training: Training, request: Request, out: Path) -> None:
    accelerator = training.accelerator
    last = training.recipe.run.epochs * training.epoch_steps
    steps = range(training.step, last)
    rank = accelerator.process_index
    batches = loaded(training_batches(training.recipe, training.data, rank, steps, training.device))
    with Display(training, accelerator, training.recipe.run.epochs) as display:
        for _ in steps:
            training.advance(batches)
            display.stepped()
            epoch_ends = training.step % training.epoch_steps == 0
            if epoch_ends:
                display.ended()
            if epoch_ends or training.step % request.checkpoint_every == 0:
                snapshot = training.snapshot()
                if accelerator.is_main_process:
                    checkpoint.save(out, snapshot)
    display.say(f"step {training.step}: {sentence(training.history[-1])}")
    display.say(f"Checkpoint: {checkpoint.newest(out)}")
