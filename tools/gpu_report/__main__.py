"""``python -m tools.gpu_report --out DIR``: run the steps, then print what came of them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.gpu_report import draw
from tools.gpu_report.step import FILE, append, read
from tools.gpu_report.steps import STEPS

# What compiles runs side by side, what is timed alone.
STANDARD = "machine,correctness+warm+suite,overhead,layers,model,counters"
ROOT = Path(__file__).parents[2]
GRACE = 20.0  # seconds from the end of a step's time to its end by force: a case may be under way


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_report", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--steps", default=STANDARD, help="in this order; those joined by + run at once"
    )
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    parser.add_argument("--effort", choices=("smoke", "short", "full"), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    given.steps = [group.split("+") for group in given.steps.split(",")]
    unknown = [name for group in given.steps for name in group if name not in STEPS]
    if unknown:
        parser.error(f"--steps must be of {', '.join(STEPS)}, got {unknown[0]!r}")
    return given


def _start(name: str, seconds: float, given: argparse.Namespace) -> list[subprocess.Popen[bytes]]:
    """The processes of a step."""
    workers = min(STEPS[name].workers, os.cpu_count() or 1) if given.device == "cuda" else 1
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
        limit = STEPS[name].seconds * (1 if given.device == "cuda" else 20)
        seconds = min(limit, end - start - GRACE)
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


def _said(name: str, rows: Path) -> str:
    """Of one step: how it ended, and what failed or was left out."""
    mine = [row for row in read(rows) if row["step"] == name]
    (ended,) = (row for row in read(rows) if row["step"] == "steps" and row["name"] == name)
    lines = [f"== {name}: {ended['status']}, {len(mine)} rows"]
    lines += [f"FAILED {row['case']}: {row['failed'][:300]}" for row in mine if "failed" in row]
    lines += [f"WRONG {row}" for row in mine if row.get("right") is False]
    left = [row["case"] for row in mine if "left" in row]
    lines += [f"left out, no time: {len(left)} cases, from {left[0]}"] if left else []
    return "\n".join(lines)


def main() -> None:
    """Run every step, and keep the report up to date after each."""
    given = _arguments()
    given.out = given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = given.out / "rows.jsonl"
    for old in (rows, given.out / "log.txt"):
        old.unlink(missing_ok=True)
    os.environ[FILE] = str(rows)
    paths = [str(ROOT), str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    end = time.monotonic() + given.budget
    for group in given.steps:
        _run(group, given, end)
        (given.out / "gpu-report.json").write_text(json.dumps(read(rows), indent=0) + "\n")
        for name in group:
            print(_said(name, rows), flush=True)
    report = draw.Report(read(rows))
    if any("gb_per_s" in row for row in report.of("machine")):
        print(draw.page(report, "en"))


if __name__ == "__main__":
    main()
