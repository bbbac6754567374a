"""Bytes that one call of a candidate needs."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from rbnorm_lab.bench.candidates import Subject


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
    state = _storages(subject.model)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    count = _cuda_peak if device.type == "cuda" else _cpu_peak
    with subject.ready(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        peak = count(subject)
    return Memory(sum(kept.values()), peak)


def _storages(model: nn.Module | None) -> set[int]:
    state = {} if model is None else model.state_dict(keep_vars=True)
    return {tensor.untyped_storage().data_ptr() for tensor in state.values()}


def _cuda_peak(subject: Subject) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    subject.call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(subject: Subject) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it logs every start and stop otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        subject.call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return most
