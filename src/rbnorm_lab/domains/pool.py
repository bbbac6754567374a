"""Runs side by side on one device, until a time has come."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

import torch

from rbnorm_lab.domains.config import DomainFailure, DomainRecord, DomainRun
from rbnorm_lab.domains.images import DomainImages
from rbnorm_lab.domains.timing import Seconds, measure
from rbnorm_lab.domains.training import Weights, run_domain
from rbnorm_lab.errors import UsageError
from rbnorm_lab.records import now, told


@dataclass(frozen=True)
class Work:
    """What every process of a pool is given when it starts.

    Attributes:
        images: All images, in memory that processes share.
        model: The pretrained network.
        weights: File of its weights; None for torchvision's own.
        device: Name of the device.
        threads: Threads of each process, on the CPU.
    """

    images: DomainImages
    model: str
    weights: Path | None
    device: str
    threads: int


_ENDED: Final = (
    "the processes that make the runs ended, perhaps for want of memory: take fewer --processes"
)


class Pool:
    """Processes that each have the images on the device and make one run at a time.

    They are started afresh, so that a device that is used by one does not hinder the others, and
    killed when the pool is closed, whatever they do.

    Args:
        work: What they are given.
        processes: Their number.
    """

    def __init__(self, work: Work, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers: dict[Connection, Any] = {}
        for _ in range(processes):
            here, there = context.Pipe()
            worker = context.Process(target=_serve, args=(there, work), daemon=True)
            worker.start()
            there.close()
            self._workers[here] = worker

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.kill()
        for worker in self._workers.values():
            worker.join()

    def seconds(self, runs: list[DomainRun]) -> list[tuple[DomainRun, Seconds]]:
        """How long these runs' steps and tests take while every process makes one of them."""
        given = {c: runs[i % len(runs)] for i, c in enumerate(self._workers)}
        answers: list[Any] = []
        for _ in range(2):  # the first time compiles kernels and loads libraries
            for connection, run in given.items():
                self._ask(connection, (measure, run, {}))
            answers = [(run, self._answer(connection)) for connection, run in given.items()]
            for _, answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
        return answers

    @staticmethod
    def _ask(connection: Connection, request: Any) -> None:
        try:
            connection.send(request)
        except OSError as error:
            raise UsageError(_ENDED) from error

    @staticmethod
    def _answer(connection: Connection) -> Any:
        try:
            return connection.recv()
        except (EOFError, OSError) as error:
            raise UsageError(_ENDED) from error

    def run(
        self,
        ready: Callable[[], Iterable[DomainRun]],
        remedies: Callable[[DomainRun], bool],
        keep_as: Callable[[DomainRun], Path | None],
        keep: Callable[[DomainRecord | DomainFailure], None],
        deadline: float | None,
    ) -> bool:
        """Make runs until there is none left or the time has come.

        Args:
            ready: The runs that can be made now and are not done, the most urgent first; asked
                again whenever a run has ended.
            remedies: Whether a run is tested with other statistics, too.
            keep_as: In which file a run's network is kept, if it is.
            keep: Called with every result.
            deadline: When to stop, by ``time.monotonic``, or None: what is not done then is not
                kept.

        Returns:
            Whether all is done.
        """
        idle, busy = list(self._workers), dict[Connection, DomainRun]()
        while True:
            waiting = [run for run in ready() if run not in busy.values()]
            for run in waiting[: len(idle)]:
                connection = idle.pop()
                how = {"remedies": remedies(run), "keep": keep_as(run)}
                self._ask(connection, (run_domain, run, how))
                busy[connection] = run
            if not busy:
                return not waiting
            left = None if deadline is None else deadline - time.monotonic()
            ended = [] if left is not None and left <= 0 else wait(list(busy), left)
            if not ended:
                return False
            for connection in [c for c in busy if c in ended]:
                run = busy.pop(connection)
                try:
                    keep(connection.recv())
                    idle.append(connection)
                except (EOFError, OSError) as error:  # killed by the system; another one tries it
                    del self._workers[connection]
                    if not self._workers:
                        raise UsageError(_ENDED) from error


def _serve(connection: Connection, work: Work) -> None:
    """Answer the pool's requests until it kills this process."""
    if work.device == "cpu":
        torch.set_num_threads(work.threads)
    # Python in a thread of its own for the backward pass runs at half the speed on busy cores
    torch.autograd.set_multithreading_enabled(False)
    os.environ["ACCELERATE_TORCH_DEVICE"] = work.device  # for the accelerator of every run
    images = work.images.to(torch.device(work.device))
    weights = Weights(work.model, work.weights)
    while True:
        try:
            what, run, how = connection.recv()
        except EOFError:
            return
        try:
            connection.send(what(run, images, weights, **how))
        except Exception as error:  # whatever it is, the other runs can go on
            failure = DomainFailure(run, *told(error), now())
            connection.send(failure if what is run_domain else error)
