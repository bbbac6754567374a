"""Rows in a folder, one line of JSON for each, and the machine that they were measured on."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

import rbnorm
from rbnorm.models.files import parse_json, replace
from rbnorm_lab.bench.cases import Row
from rbnorm_lab.errors import UsageError
from rbnorm_lab.records import environment, now

ROWS: Final = "rows.jsonl"
MACHINE: Final = "machine.json"

Machine = dict[str, dict[str, Any]]
"""For every part, where, when and with which versions it was measured."""


def load(out: Path) -> tuple[list[Row], Machine]:
    """The rows of a folder and where they come from; none where there are none yet.

    Raises:
        UsageError: A file cannot be read, or is none of this benchmark's.
    """
    try:
        lines = (out / ROWS).read_bytes().splitlines()
        rows = [msgspec.json.decode(line, type=Row) for line in lines]
        machine = parse_json((out / MACHINE).read_text())
    except FileNotFoundError:
        return [], {}
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"{ROWS} and {MACHINE} in {out} are not rows of this benchmark ({error}): remove them, "
            "or choose another --out"
        ) from error
    return rows, machine


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
        "limit": os.environ.get("RBNORM_CPU"),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "backend": f"{backend.name}: {backend.why}",
    }


def beside(out: Path, machine: dict[str, Any]) -> Path:
    """Where the rows of a machine go: to ``out``, or below it if another processor's are there."""
    name = _processor(machine)
    _, others = load(out)
    if all(_processor(other) == name for other in others.values()):
        return out
    return out / "-".join(re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", name.lower())))


def _processor(machine: dict[str, Any]) -> str:
    """What computed, by the description of a part's machine: a CPU may be limited by RBNORM_CPU."""
    if machine["device"] != "cpu":
        return str(machine["device"])
    return f"{machine['cpu']} {machine.get('limit') or ''}".strip()


def _cpu_name() -> str:
    """The model of the CPU, which Linux tells in a file and other systems through Python."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
