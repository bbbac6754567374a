"""The file of rows: every process of a report appends to it, a line of JSON at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tools.gpu_report.options import Row

FILE = "RBNORM_GPU_REPORT_ROWS"
"""The environment variable that names the file."""


def append(step: str, row: Row) -> None:
    """Write one row at once; a line this short is written whole."""
    with open(os.environ[FILE], "a") as file:
        file.write(json.dumps({"step": step, **row}) + "\n")


def read(path: Path) -> list[Row]:
    """Every whole row."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the process was killed while it wrote
            continue
    return found
