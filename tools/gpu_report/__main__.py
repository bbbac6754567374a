"""``python -m tools.gpu_report --out DIR``: run the steps, then print one table."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.gpu_report import table
from tools.gpu_report.rows import FILE, append, read

# What compiles runs side by side, what is timed alone.
STANDARD = "machine,correctness+warm+suite,overhead,layers,model,phases,counters,training"
STEPS = STANDARD.replace("+", ",").split(",")
DATA = "RBNORM_GPU_REPORT_DATA"  # see the training; importing it would open the device here
ROOT = Path(__file__).parents[2]
GRACE = 20.0  # seconds from the end of a step's time to its end by force: a case may be under way


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_report", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--steps", default=STANDARD, help="in this order; those joined by + run at once"
    )
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    parser.add_argument("--limit", type=float, default=480, help="seconds for any one step")
    parser.add_argument("--effort", choices=("smoke", "short", "full"), default="full")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as a tar.gz of train/CLASS/*.jpg ...")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    given.steps = [group.split("+") for group in given.steps.split(",")]
    unknown = [name for group in given.steps for name in group if name not in STEPS]
    if unknown:
        parser.error(f"--steps must be of {', '.join(STEPS)}, got {unknown[0]!r}")
    return given


def _settings(name: str) -> tuple[float, int]:
    """Time limit and processes of a step, read: to import it would open the device here."""
    text = (ROOT / "tools/gpu_report" / f"{name}.py").read_text()
    seconds, workers = re.findall(r"^NAME, SECONDS, WORKERS = \S+, (\d+), (\d+)$", text, re.M)[0]
    return float(seconds), int(workers)


def _start(name: str, seconds: float, given: argparse.Namespace) -> list[subprocess.Popen[bytes]]:
    """The processes of a step."""
    workers = min(_settings(name)[1], os.cpu_count() or 1) if given.device == "cuda" else 1
    command = [sys.executable, "-m", "tools.gpu_report.step", name, "--device", given.device]
    command += ["--effort", given.effort, "--seconds", str(seconds)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if given.device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    with open(given.out / "log.txt", "a") as log:
        return [
            subprocess.Popen(
                [*command, "--share", f"{i}/{workers}"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            for i in range(workers)
        ]


def _wait(process: subprocess.Popen[bytes], end: float) -> int | str:
    """The exit status; a process that is still there at ``end`` is ended, with its children."""
    try:
        return process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "time limit"


def _run(names: list[str], given: argparse.Namespace, end: float) -> None:
    """Steps side by side, each ended when its time or the budget is over."""
    start = time.monotonic()
    running = {}
    for name in names:
        seconds = min(_settings(name)[0], given.limit, end - start - GRACE)
        if seconds > 0:
            running[name] = seconds, _start(name, seconds, given)
        else:
            append("steps", {"name": name, "status": "no time was left"})
    for name, (seconds, processes) in running.items():
        codes = [_wait(process, start + seconds + GRACE) for process in processes]
        bad = [code for code in codes if code]
        status = f"{bad[0]} ({len(bad)} of {len(codes)} processes)" if bad else "ok"
        took = round(time.monotonic() - start, 1)
        append("steps", {"name": name, "status": status, "seconds": took})


def main() -> None:
    """Run every step, and keep the report up to date after each."""
    given = _arguments()
    importlib.import_module("rbnorm")  # with a sentence here if PYTHONPATH=src is missing
    given.out = given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = given.out / "rows.jsonl"
    for old in (rows, given.out / "log.txt"):
        old.unlink(missing_ok=True)
    os.environ[FILE] = str(rows)
    if given.data is not None:
        os.environ[DATA] = str(given.data.resolve())
    paths = [str(ROOT), str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    end = time.monotonic() + given.budget
    for group in given.steps:
        _run(group, given, end)
        (given.out / "gpu-report.json").write_text(json.dumps(read(rows), indent=0) + "\n")
        for name in group:
            print(table.of(name, read(rows)), flush=True)
    print(table.of("steps", read(rows)))


if __name__ == "__main__":
    main()
