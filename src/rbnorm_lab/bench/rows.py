"""What was measured: one row for each candidate in each case, one line of JSON for each row."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch

import rbnorm
from rbnorm.models.files import parse_json, replace
from rbnorm_lab.errors import UsageError
from rbnorm_lab.records import environment, now

ROWS: Final = "rows.jsonl"
MACHINE: Final = "machine.json"

Machine = dict[str, dict[str, Any]]
"""For every part, where, when and with which versions it was measured."""


@dataclass(frozen=True)
class Case:
    """What is the same for all candidates that are compared with one another.

    Attributes:
        part: The part of the benchmark.
        mode: "training", forward and backward; or "inference".
        dtype: Of the input; parameters are float32.
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
        """Whether a call is forward and backward."""
        return self.mode == "training"

    @property
    def nbytes(self) -> int:
        """Size of the input."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return torch.Size(self.shape).numel() * dtype.itemsize

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
        parameters: Numbers in the parameters of the network; None where a layer is measured, or
            where nobody counted.
        buffers: Numbers in its buffers, likewise.
        flops: Floating-point operations of a call in convolutions and matrix products, likewise.
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
    buffers: int | None = None
    flops: int | None = None

    @property
    def case(self) -> Case:
        """What this row may be compared in."""
        return Case(*(getattr(self, field.name) for field in fields(Case)))


def cases(rows: Iterable[Row]) -> Iterator[dict[str, Row]]:
    """The rows of every case by candidate, in the order they were measured."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.candidate] = row
    yield from found.values()


def load(out: Path) -> tuple[list[Row], Machine]:
    """The rows of a folder and where they come from; none where there are none yet.

    Raises:
        UsageError: A file cannot be read, or is none of this benchmark's.
    """
    try:
        lines = (out / ROWS).read_text().splitlines()
        machine = parse_json((out / MACHINE).read_text())
        rows = [_parse(parse_json(line)) for line in lines]
    except FileNotFoundError:
        return [], {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{ROWS} and {MACHINE} in {out} are not rows of this benchmark ({error}): remove them, "
            "or choose another --out"
        ) from error
    return rows, machine


def _parse(values: dict[str, Any]) -> Row:
    return Row(**{**values, "shape": tuple(values["shape"])})


def save(out: Path, rows: Sequence[Row], machine: Machine) -> None:
    """Write the rows and where they come from, each file whole or not at all."""
    lines = (json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)
    replace(out / ROWS, "".join(lines).encode())
    replace(out / MACHINE, (json.dumps(machine, indent=2) + "\n").encode())


def here(device: torch.device) -> dict[str, Any]:
    """This machine, the versions and the time."""
    backend = rbnorm.backends()[device.type]
    return {
        "date": now(),
        **environment(),
        "cpu": _cpu_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "backend": f"{backend.name}: {backend.why}",
    }


def processor(machine: dict[str, Any]) -> str:
    """What computed, by the description of a part's machine."""
    return str(machine["cpu"] if machine["device"] == "cpu" else machine["device"])


def beside(out: Path, machine: dict[str, Any]) -> Path:
    """Where the rows of a machine go: to ``out``, or below it if another processor's are there."""
    name = processor(machine)
    _, others = load(out)
    if all(processor(other) == name for other in others.values()):
        return out
    return out / "-".join(re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", name.lower())))


def _cpu_name() -> str:
    """The model of the CPU, which Linux tells in a file and other systems through Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
