"""What is compared in which case, and what came of it; needs torch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Final

import torch

BASELINE: Final = "batchnorm"
LAYOUTS: Final[dict[str, torch.memory_format]] = {
    "nchw": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


@dataclass(frozen=True)
class Case:
    """What is the same for all candidates that are compared with one another.

    Attributes:
        part: The part of the benchmark.
        mode: "training", forward and backward; "training forward", its first half; or "inference".
        dtype: Of a layer's input, whose parameters are float32; a network's, by autocast.
        layout: "nchw" or "channels_last".
        shape: Of the input (N, C, H, W).
    """

    part: str
    mode: str
    dtype: str
    layout: str
    shape: tuple[int, ...]

    @property
    def training(self) -> bool:
        """Whether layers are in training mode."""
        return self.mode.startswith("training")

    @property
    def numel(self) -> int:
        """Numbers in the input."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Size of the input."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return self.numel * dtype.itemsize

    @property
    def size(self) -> str:
        """The shape as people write it."""
        return "x".join(map(str, self.shape))


@dataclass(frozen=True)
class Row(Case):
    """One candidate in one case.

    Attributes:
        candidate: Its name.
        backend: What ran it: "torch", "inductor", or a name of :func:`rbnorm.backends`.
        median_s: Median over the rounds of the seconds of one call; q1_s and q3_s the quartiles.
        rounds: Timings taken.
        calls: Calls in each timing.
        ratio_to_batchnorm: Ratio of this median to that of BatchNorm in the same case.
        threads: Threads of PyTorch.
        saved_bytes: Bytes that the forward pass keeps for the backward pass, without parameters
            and buffers; None where there is no backward pass.
        peak_bytes: Most bytes that were allocated at a time during a call.
        parameters: Numbers in the parameters of the layer or network; None where they were not
            counted.
    """

    candidate: str
    backend: str
    median_s: float
    q1_s: float
    q3_s: float
    rounds: int
    calls: int
    ratio_to_batchnorm: float
    threads: int
    saved_bytes: int | None
    peak_bytes: int
    parameters: int | None = None

    @property
    def case(self) -> Case:
        """What this row may be compared in."""
        return Case(*(getattr(self, field.name) for field in fields(Case)))

    @property
    def spread(self) -> float:
        """What lies between the quartiles, as a share of the median."""
        return (self.q3_s - self.q1_s) / self.median_s


def cases(rows: Iterable[Row]) -> Iterator[dict[str, Row]]:
    """The rows of every case by candidate, in the order they were measured."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.candidate] = row
    yield from found.values()
