"""Seconds and bytes of the candidates of one case."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Final

import torch

from rbnorm_lab.bench.candidates import BASELINE, Subject
from rbnorm_lab.bench.memory import count_bytes
from rbnorm_lab.bench.rows import Case, Row

FEWEST_ROUNDS: Final = 7
_ELEMENTS: Final = 2**19  # a timing covers about this many, and so at least some 0.1 ms


@dataclass(frozen=True)
class Effort:
    """How long to measure a case.

    Attributes:
        repeats: Rounds of timings.
        seconds: Once these are over, a case ends as soon as it has :data:`FEWEST_ROUNDS`.
    """

    repeats: int = 15
    seconds: float = 1.5


@dataclass(frozen=True)
class Part:
    """Cases, and what makes the candidates of one of them, BatchNorm among them."""

    cases: tuple[Case, ...]
    subjects: Callable[[Case, torch.device], list[Subject]]


def measure(
    case: Case, subjects: Sequence[Subject], device: torch.device, effort: Effort
) -> list[Row]:
    """Warm up, count bytes, and time the candidates in turn; one row for each."""
    calls = max(1, min(50, _ELEMENTS // torch.Size(case.shape).numel()))
    for subject in subjects:  # the first calls compile
        with subject.ready():
            subject.call()
    memory = {subject.name: count_bytes(subject, device) for subject in subjects}
    seconds = in_turn(subjects, calls, device, effort)
    cut = {name: _quartiles(values) for name, values in seconds.items()}
    return [
        Row(
            **{**asdict(case), **subject.counts},
            candidate=subject.name,
            backend=subject.backend,
            median_s=cut[subject.name][1],
            q1_s=cut[subject.name][0],
            q3_s=cut[subject.name][2],
            rounds=len(seconds[subject.name]),
            calls=calls,
            ratio_to_batchnorm=cut[subject.name][1] / cut[BASELINE][1],
            threads=torch.get_num_threads(),
            saved_bytes=memory[subject.name].saved if subject.grad else None,
            peak_bytes=memory[subject.name].peak,
        )
        for subject in subjects
    ]


def _quartiles(values: Sequence[float]) -> list[float]:
    return quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def in_turn(
    subjects: Sequence[Subject], calls: int, device: torch.device, effort: Effort
) -> dict[str, list[float]]:
    """Seconds of a call of every subject in every round.

    The subjects take turns, so that a busy moment meets all of them, and every round begins with
    the next one, so that none always follows the same other.
    """
    clock = _cuda_seconds if device.type == "cuda" else _seconds
    found: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    start = time.perf_counter()
    for turn in range(effort.repeats):
        if turn >= FEWEST_ROUNDS and time.perf_counter() - start > effort.seconds:
            break
        first = turn % len(subjects)
        for subject in (*subjects[first:], *subjects[:first]):
            with subject.ready():
                found[subject.name].append(clock(subject.call, calls) / calls)
    return found


def _seconds(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def _cuda_seconds(call: Callable[[], object], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3
