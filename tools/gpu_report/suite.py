"""The tests that need a device, ``tests/gpu``, as pytest runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from tools.gpu_report.options import Options, Row

NAME, SECONDS, WORKERS = "suite", 200, 1


def cases(options: Options) -> list[str]:
    """One run of everything; without a device, what such a run would collect."""
    return ["tests/gpu"]


def run(case: str, options: Options) -> Iterator[Row]:
    """The plugin of this package writes a row for every test; this one is the sum."""
    workers = min(8, os.cpu_count() or 1) if find_spec("xdist") and options.cuda else 0
    command = [sys.executable, "-m", "pytest", case, "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tools.gpu_report.recorder", "-o", "addopts=", "-W", "default"]
    command += ["-n", str(workers)] if workers else []
    command += [] if options.cuda else ["--collect-only"]
    environment = {"RBNORM_FUZZ_EXAMPLES": str(options.choose(1, 8, 40)), **os.environ}
    found = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    print(found.stdout, found.stderr, flush=True)
    lines = found.stdout.strip().splitlines()
    yield {"test": "all", "outcome": lines[-1] if lines else "nothing", "status": found.returncode}
