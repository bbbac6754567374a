"""One process of one step, started by the report, and the file that all of them write rows to."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

FILE = "RBNORM_GPU_REPORT_ROWS"
"""The environment variable that names the file of rows: a line of JSON each."""


def append(step: str, row: dict[str, Any]) -> None:
    """Write one row at once; a line this short is written whole."""
    with open(os.environ[FILE], "a") as file:
        file.write(json.dumps({"step": step, **row}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole row."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the process was killed while it wrote
            continue
    return found


def pytest_runtest_logreport(report: Any) -> None:
    """As a plugin of pytest: a row for every test, so that a run cut short says much."""
    controller = "PYTEST_XDIST_WORKER" not in os.environ
    if FILE not in os.environ or not controller or (report.when != "call" and report.passed):
        return
    row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    if report.failed:
        row["error"] = str(report.longrepr)[-600:]
    append("suite", row)


def _interpret() -> None:
    """Let Triton's interpreter serve the CPU in place of what does."""
    backends = importlib.import_module("rbnorm.kernels.backends")
    backends._compiled["cpu"] = backends._compiled["cuda"]


def main() -> int:
    """Run this process's share of the cases; a case that fails costs itself alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--device", required=True)
    parser.add_argument("--effort", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--share", required=True, help="i/n: every n-th case from the i-th")
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    import torch  # noqa: PLC0415

    from tools.gpu_report.steps import STEPS, Options  # noqa: PLC0415

    options = Options(torch.device(given.device), given.effort)
    start = time.perf_counter()
    if not options.cuda:
        torch.set_num_threads(1)
        _interpret()
    step, (index, count) = STEPS[given.name], map(int, given.share.split("/"))
    failures = 0
    for case in step.cases(options)[index::count]:
        if time.perf_counter() - start > given.seconds:
            append(given.name, {"case": str(case), "left": "the time was over"})
            continue
        try:
            for row in step.run(case, options):
                append(given.name, row)
        except Exception as error:
            failures += 1
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"[:600]
            append(given.name, {"case": str(case), "failed": message})
            if "CUDA error" in message or "illegal memory" in message:
                break
    return min(failures, 100)


if __name__ == "__main__":
    sys.exit(main())
