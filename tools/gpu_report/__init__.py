"""All a GPU can tell about the kernels, in minutes: ``python -m tools.gpu_report --out DIR``.

It runs where nothing is installed but torch and Triton: from the root of the project, with
``PYTHONPATH=src``. What is timed is what ``rbnorm bench --device cuda`` times, and what only a GPU
has stands beside it. A row is written the moment it is known, to ``rows.jsonl``; so a crash, or the
end of the time, loses one case.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROWS = "RBNORM_GPU_REPORT_ROWS"
"""The environment variable that names the file of rows: a line of JSON each."""


def append(step: str, row: Row) -> None:
    """Write one row at once; a line this short is written whole."""
    with open(os.environ[ROWS], "a") as file:
        file.write(json.dumps({"step": step, **row}) + "\n")


def read() -> list[Row]:
    """Every whole row: a process may have been ended while it wrote."""
    lines = Path(os.environ[ROWS]).read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]
