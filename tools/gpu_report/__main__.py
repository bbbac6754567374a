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

from tools.gpu_report import ROWS, append, draw, read
from tools.gpu_report.steps import STEPS

STANDARD = "machine,warm,overhead,layers,model,counters"
ROOT = Path(__file__).parents[2]
SLOWER = 20  # times: Triton's interpreter


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_report", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--steps", default=STANDARD, help="one after the other, in this order")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the report itself"
    )
    given = parser.parse_args()
    given.steps = given.steps.split(",")
    unknown = [name for name in given.steps if name not in STEPS]
    if unknown:
        parser.error(f"--steps must be of {', '.join(STEPS)}, got {unknown[0]!r}")
    return given


def _prepare(given: argparse.Namespace) -> Path:
    """The folder, and what all processes find in their environment."""
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("rows.jsonl", "log.txt"):
        (out / name).write_text("")
    paths = [str(ROOT), str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    os.environ |= {ROWS: str(out / "rows.jsonl"), "PYTHONPATH": os.pathsep.join(paths)}
    if given.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    return out


def _run(name: str, device: str, out: Path) -> None:
    """A step in a process of its own, until it has ended, or its time: then with its children."""
    limit = STEPS[name].seconds * (SLOWER if device == "cpu" else 1)
    start = time.monotonic()
    with (out / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tools.gpu_report.steps", name, device],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        code = process.wait(limit)
        status = "ok" if code == 0 else f"status {code}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        status = "time limit"
    took = round(time.monotonic() - start, 1)
    append("steps", {"name": name, "status": status, "seconds": took})


def _said(name: str) -> str:
    """Of one step: how it ended, and what failed."""
    rows = read()
    mine = [row for row in rows if row["step"] == name]
    (ended,) = (row for row in rows if row["step"] == "steps" and row["name"] == name)
    lines = [f"== {name}: {ended['status']}, {len(mine)} rows"]
    lines += [f"FAILED {row['case']}: {row['failed'][:300]}" for row in mine if "failed" in row]
    return "\n".join(lines)


def main() -> None:
    """Run every step, and keep the report up to date after each."""
    given = _arguments()
    out = _prepare(given)
    for name in given.steps:
        _run(name, given.device, out)
        print(_said(name), flush=True)
        (out / "gpu-report.json").write_text(json.dumps(read(), indent=0) + "\n")
    report = draw.Report(read())
    if any("gb_per_s" in row for row in report.of("machine")):
        print(draw.page(report, "en"))


if __name__ == "__main__":
    main()
