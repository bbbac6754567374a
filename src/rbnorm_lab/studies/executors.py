"""Where runs happen: here one after the other, or on a Ray cluster side by side."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.progress import Progress

from rbnorm_lab.config import RunConfig
from rbnorm_lab.data import ImageData, load_data
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.models import needs_rgb
from rbnorm_lab.processes import choose_threads
from rbnorm_lab.records import Failure, Record, environment, now, told
from rbnorm_lab.train import steps_of, train_run

Result = Record | Failure
Executor = Callable[[Sequence[RunConfig], Path | None, Progress], Iterator[Result]]
"""Runs configs, with the folder of the files of data sets and a place to show progress."""

LOCAL_RAY = "local"
_OF_DATA: Final = ("limit", "test_limit", "image_size", "held_out")


def data_of(config: RunConfig, root: Path | None) -> ImageData:
    """The data of a run, which runs of the same data share.

    Raises:
        UsageError: The data is missing or broken.
    """
    rgb = needs_rgb(config.model)
    values = {name: getattr(config, name) for name in _OF_DATA}
    key = (config.data, root, rgb, *values.values())
    if key not in _loaded:
        _loaded[key] = load_data(config.data, root, rgb=rgb, **values)
    return _loaded[key]


_loaded: dict[tuple[Any, ...], ImageData] = {}


def attempt(
    config: RunConfig, root: Path | None, progress: Progress | None = None
) -> Record | Failure:
    """One run, or the error it raised."""
    try:
        data = data_of(config, root)
        choose_threads(data)
        if progress is None:
            return train_run(config, data)
        name = f"{config.norm}, seed {config.seed}"
        task = progress.add_task(name, total=steps_of(config, data))
        try:
            return train_run(config, data, lambda: progress.advance(task))
        finally:
            progress.remove_task(task)
    except Exception as error:  # whatever it is, the other runs can go on
        return _failure(config, error)


def _failure(config: RunConfig, error: Exception) -> Failure:
    return Failure(config, *told(error), environment(), now())


def in_turn(
    configs: Sequence[RunConfig], root: Path | None, progress: Progress
) -> Iterator[Result]:
    """One run after the other, in this process."""
    return (attempt(config, root, progress) for config in configs)


def on_ray(address: str) -> Executor:
    """Runs side by side on a Ray cluster, each with one CPU, or one GPU where there are any.

    The results are in the order in which they end. Files of data sets are read where a run happens.

    Args:
        address: ``auto`` for the cluster this machine belongs to, the address of another, or
            ``local`` for one that lasts as long as this command.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """
    try:
        ray: Any = importlib.import_module("ray")  # an extra
    except ImportError as error:
        raise UsageError("--ray needs Ray: pip install ray") from error
    where = None if address == LOCAL_RAY else address
    try:
        ray.init(where, log_to_driver=False, include_dashboard=False if where is None else None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"--ray {address}: no cluster answers ({first_line(error)})") from error

    def run(
        configs: Sequence[RunConfig], root: Path | None, progress: Progress
    ) -> Iterator[Result]:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task: Any = ray.remote(num_cpus=1, num_gpus=gpus)(attempt)
        running = {task.remote(config, root): config for config in configs}
        while running:
            (done, *_), _ = ray.wait(list(running))
            config = running.pop(done)
            try:
                yield ray.get(done)
            except ray.exceptions.RayError as error:  # the process that ran it is gone
                yield _failure(config, error)

    return run
