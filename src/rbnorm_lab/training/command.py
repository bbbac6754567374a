"""``rbnorm train``: from what was asked for to a trained model."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration, gather_object
from filelock import FileLock, Timeout

from rbnorm_lab.config import STEPS, RunConfig
from rbnorm_lab.data import ImageData, load_data
from rbnorm_lab.errors import UsageError, at_least
from rbnorm_lab.folders import check_folder, make_folder
from rbnorm_lab.models import needs_rgb
from rbnorm_lab.norms import canonical_norm
from rbnorm_lab.processes import make_accelerator
from rbnorm_lab.train import check_run, model_of
from rbnorm_lab.training import checkpoint
from rbnorm_lab.training.display import Display, sentence, tracking
from rbnorm_lab.training.loop import Training

LR_BATCH_SIZE: Final = 256
"""The batch size that the learning rate of ``rbnorm train`` is for; others scale it."""


@dataclass(frozen=True)
class Request:
    """What to train, or to evaluate.

    Attributes:
        run: The run.
        data_root: Where the files of data sets are; see :func:`rbnorm_lab.data.load_data`.
        checkpoint_every: Steps between two checkpoints within an epoch.
        tracker: A tracker that accelerate knows, or ``none``.
        evaluate: Only evaluate the newest checkpoint.
    """

    run: RunConfig
    data_root: Path | None
    checkpoint_every: int
    tracker: str
    evaluate: bool

    @classmethod
    def of(cls, options: Mapping[str, Any], processes: int) -> "Request":
        """What the options of the command ask for.

        The learning rate is for batch size :data:`LR_BATCH_SIZE`, others scale it in proportion.

        Raises:
            UsageError: A value is out of range, or nothing is known by its name.
        """
        size = options["batch_size"]
        run = RunConfig.of(
            options,
            norm=canonical_norm(options["norm"]),
            lr=options["lr"] * size / LR_BATCH_SIZE,
            processes=processes,
            norm_batch=parts(size, processes, options["accumulate"]),
            recipe=STEPS,
        )
        names = ("data_root", "checkpoint_every", "tracker", "evaluate")
        return cls(run, *(options[name] for name in names))

    def __post_init__(self) -> None:
        at_least(1, checkpoint_every=self.checkpoint_every)


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


def train(request: Request, out: Path) -> None:
    """Train from the newest checkpoint in ``out`` on, or only evaluate it.

    Under ``torchrun`` or ``accelerate launch`` every process calls this; the main one prints and
    writes, and all read.

    Raises:
        UsageError: The run cannot be made, continued or evaluated as asked.
    """
    check_folder(out)
    config = request.run
    accelerator = _accelerator(request, out)
    data = load_data(
        config.data,
        request.data_root,
        rgb=needs_rgb(config.model),
        limit=config.limit,
        image_size=config.image_size,
    )
    with ExitStack() as stack:
        if out.is_dir() and not request.evaluate:  # nobody else may write while this reads
            stack.enter_context(_only_writer(out, accelerator))
        training = _training(request, data, accelerator, checkpoint.newest(out), out)
        if request.evaluate:
            _evaluate(training, accelerator)
        else:
            if not out.is_dir():
                stack.enter_context(_only_writer(out, accelerator))
            _track(training, accelerator)
            _train(training, request, out)
    accelerator.end_training()


def _training(
    request: Request, data: ImageData, accelerator: Accelerator, found: Path | None, out: Path
) -> Training:
    config = request.run
    if request.evaluate and not found:
        raise UsageError(f"--evaluate: there is no checkpoint in {out}")
    if not found:
        check_run(config, data, accelerator.device)
    training = Training(model_of(config, data), config, data, accelerator)
    _restore(training, found, evaluate=request.evaluate)
    return training


def _evaluate(training: Training, accelerator: Accelerator) -> None:
    with Display(training, accelerator) as display:
        metrics = display.evaluation(training.evaluate)
    display.say(f"step {training.step}: {sentence(metrics)}")


def _accelerator(request: Request, out: Path) -> Accelerator:
    tracker = None if request.evaluate or request.tracker == "none" else request.tracker
    known = [str(name) for name in LoggerType if name != LoggerType.ALL]
    if tracker and tracker not in known:
        raise UsageError(f"unknown tracker {tracker!r}: choose from none, {', '.join(known)}")
    if tracker and tracker not in map(str, get_available_trackers()):
        package = "tensorboard" if tracker == str(LoggerType.TENSORBOARD) else tracker
        raise UsageError(
            f"tracker {tracker!r} is not installed: install it with "
            f'pip install "{package}", or give --tracker none'
        )
    return make_accelerator(
        request.run.mixed_precision,
        log_with=tracker,
        project_config=ProjectConfiguration(logging_dir=str(out / "logs")),
    )


def _restore(training: Training, found: Path | None, *, evaluate: bool) -> None:
    identity = training.identity()
    if evaluate:
        for name in ("processes", "norm_batch"):
            del identity[name]
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
    with Display(training, training.accelerator) as display:
        if training.epoch >= training.config.epochs:
            display.say(f"Nothing left to train: {training.epoch} epochs are done.")
        training.fit(
            display.stepped,
            display.ended,
            lambda snapshot: checkpoint.save(out, snapshot),
            request.checkpoint_every,
        )
    display.say(f"step {training.step}: {sentence(training.history[-1])}")
    display.say(f"Checkpoint: {checkpoint.newest(out)}")
