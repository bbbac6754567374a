"""One process of one step: ``python -m tools.gpu_report.step NAME ...``, started by the report."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

import torch

from tools.gpu_report.options import Options
from tools.gpu_report.rows import append


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
    options = Options(given.device, given.effort, given.seconds)
    start = time.perf_counter()
    if not options.cuda:
        torch.set_num_threads(1)
        _interpret()
    step = importlib.import_module(f"tools.gpu_report.{given.name}")
    index, count = map(int, given.share.split("/"))
    failures = 0
    for number, case in enumerate(step.cases(options)):
        if number % count != index:
            continue
        if time.perf_counter() - start > options.seconds:
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
