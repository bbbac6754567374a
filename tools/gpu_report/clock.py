"""Microseconds of calls, on the device and on the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from tools.gpu_report.options import Options, synchronize

Call = Callable[[], Any]
ROUNDS = 7
ROTATED = 2**28  # bytes that the inputs in rotation cover: several times a second-level cache


def rotation(nbytes: int, options: Options) -> int:
    """How many inputs of so many bytes take turns, so that none is found in a cache."""
    return max(2, min(16, -(-ROTATED // nbytes))) if options.cuda else 1


def in_turn(
    subjects: dict[str, Sequence[Call]], options: Options, milliseconds: float = 8.0
) -> dict[str, float]:
    """The median microseconds of one call of each subject, called over its inputs in turn.

    In every round every subject is timed once, so that a change of clocks meets all of them.
    """
    lengths = {name: _seconds(calls, options) / len(calls) for name, calls in subjects.items()}
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(ROUNDS if options.cuda else 1):
        for name, calls in subjects.items():
            most = milliseconds / 1e3 / max(lengths[name], 1e-6)
            times = max(1, min(200, round(most / len(calls)))) if options.cuda else 1
            found[name].append(_seconds(calls * times, options) / (len(calls) * times))
    return {name: median(values) * 1e6 for name, values in found.items()}


def _seconds(calls: Sequence[Call], options: Options) -> float:
    if not options.cuda:
        return _host_seconds(calls)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for call in calls:
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _host_seconds(calls: Sequence[Call]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def host(call: Call, options: Options, calls: int = 60) -> float:
    """The median microseconds until a call returns, while the device has room in its queue."""
    calls = calls if options.cuda else 1
    found = []
    for _ in range(9 if options.cuda else 1):
        synchronize(options)
        found.append(_host_seconds([call] * calls) / calls)
        synchronize(options)
    return median(found) * 1e6


def captured(calls: Sequence[Call]) -> Call:
    """The calls as one CUDA graph; what they return stays alive, so that no output is shared."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]

    def replay() -> Any:
        graph.replay()
        return kept

    return replay
