"""Seconds and bytes of the candidates of one case."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle, islice
from statistics import quantiles
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rbnorm_lab.bench.candidates import Call, Subject
from rbnorm_lab.bench.cases import BASELINE, Case, Row

REPEATS: Final = 15
"""Rounds of timings; a slow case ends earlier, but not before :data:`FEWEST_ROUNDS`."""
FEWEST_ROUNDS: Final = 7
SLOW: Final = 1.5
"""Seconds after which a case is slow."""
# A timing covers about as many numbers, and so at least some 0.1 ms.
_NUMBERS: Final = {"cpu": 2**19, "cuda": 2**28}
_MOST_CALLS: Final = 50


def measure(
    case: Case,
    subjects: Sequence[Subject],
    device: torch.device,
    repeats: int = REPEATS,
    most_calls: int = _MOST_CALLS,
) -> list[Row]:
    """Warm up, count bytes, and time the candidates in turn; one row for each.

    Args:
        case: What they have in common.
        subjects: The candidates.
        device: Where they run.
        repeats: Rounds of timings.
        most_calls: The most calls in a timing.
    """
    calls = max(1, min(most_calls, _NUMBERS[device.type] // case.numel))
    for subject in subjects:  # the first calls compile
        with subject.ready() as call:
            call()
    memory = [count_bytes(subject, device) for subject in subjects]
    seconds = in_turn(subjects, calls, device, repeats)
    cut = {name: _quartiles(values) for name, values in seconds.items()}
    return [
        Row(
            **asdict(case),
            candidate=subject.name,
            backend=subject.backend,
            median_s=cut[subject.name][1],
            q1_s=cut[subject.name][0],
            q3_s=cut[subject.name][2],
            rounds=len(seconds[subject.name]),
            calls=calls,
            ratio_to_batchnorm=cut[subject.name][1] / cut[BASELINE][1],
            threads=torch.get_num_threads(),
            saved_bytes=bytes_of.saved if subject.grad else None,
            peak_bytes=bytes_of.peak,
            parameters=_parameters(subject),
        )
        for subject, bytes_of in zip(subjects, memory, strict=True)
    ]


def _quartiles(values: Sequence[float]) -> list[float]:
    return quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def _parameters(subject: Subject) -> int | None:
    if subject.model is None:
        return None
    return sum(parameter.numel() for parameter in subject.model.parameters())


def in_turn(
    subjects: Sequence[Subject], calls: int, device: torch.device, repeats: int
) -> dict[str, list[float]]:
    """Seconds of a call of every subject in every round.

    The subjects take turns, so that a busy moment meets all of them, and every round begins with
    the next one, so that none always follows the same other.
    """
    found: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    start = time.perf_counter()
    for turn in range(repeats):
        if turn >= FEWEST_ROUNDS and time.perf_counter() - start > SLOW:
            break
        first = turn % len(subjects)
        for subject in (*subjects[first:], *subjects[:first]):
            work = [*islice(cycle(subject.calls), calls)]
            with subject.ready():
                found[subject.name].append(seconds_of(work, device) / calls)
    return found


def seconds_of(work: Sequence[Call], device: torch.device) -> float:
    """Seconds of these calls, one after the other: on a GPU by its own events."""
    if device.type != "cuda":
        return host_seconds(work)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for call in work:
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def host_seconds(work: Sequence[Call]) -> float:
    """Seconds until the last of these calls returns, on a GPU before it has ended."""
    start = time.perf_counter()
    for call in work:
        call()
    return time.perf_counter() - start


class Memory(NamedTuple):
    """Bytes of one call.

    Attributes:
        saved: Kept by the forward pass for the backward pass, without the module's parameters and
            buffers. A storage counts once and whole, however many saved tensors are views of it.
        peak: The most that is allocated at a time, beyond what there was before.
    """

    saved: int
    peak: int


def count_bytes(subject: Subject, device: torch.device) -> Memory:
    """Call a candidate once and count.

    The peak is what PyTorch's allocator reports: its own statistics on a GPU, the profiler's
    record of every allocation on the CPU.
    """
    own = {} if subject.model is None else subject.model.state_dict(keep_vars=True)
    state = {tensor.untyped_storage().data_ptr() for tensor in own.values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    count = _cuda_peak if device.type == "cuda" else _cpu_peak
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with subject.ready() as call, hooks:
        peak = count(call)
    return Memory(sum(kept.values()), peak)


def _cuda_peak(call: Call) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(call: Call) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it logs every start and stop otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return most
