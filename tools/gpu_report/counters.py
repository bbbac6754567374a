"""What the hardware counts of each kernel at one shape, where Nsight Compute is there."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import torch

from rbnorm import RepresentativeBatchNorm2d
from tools.gpu_report.options import Options, Row
from tools.gpu_report.subjects import Case, random

NAME, SECONDS, WORKERS = "counters", 60, 1
CASES = [Case("training", "bfloat16", layout, (32, 256, 56, 56)) for layout in
         ("channels_last", "contiguous")]  # fmt: skip
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "read",
    "dram__bytes_write.sum": "written",
}


def cases(options: Options) -> list[int]:
    """Which of ``CASES``."""
    return list(range(len(CASES)))


def run(case: int, options: Options) -> Iterator[Row]:
    """The kernels of a training step and of an evaluation, in their order."""
    if not options.cuda or not shutil.which("ncu"):
        yield {"note": "ncu, Nsight Compute, is not on the PATH, or there is no device"}
        return
    names = ",".join(METRICS)
    command = ["ncu", "--csv", "--profile-from-start", "off", "--metrics", names]
    command += ["--print-units", "base", sys.executable, "-m", "tools.gpu_report.counters"]
    found = subprocess.run(
        [*command, str(case)], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    lines = [line for line in found.stdout.splitlines() if line.startswith('"')]
    if not lines:
        raise RuntimeError(f"ncu: {found.stdout[-300:]} {found.stderr[-300:]}")
    rows: dict[str, Row] = {}
    for line in csv.DictReader(lines):
        if line["Metric Name"] in METRICS:
            row = rows.setdefault(line["ID"], {"kernel": line["Kernel Name"][:40]})
            row[METRICS[line["Metric Name"]]] = float(line["Metric Value"].replace(",", ""))
    for row in rows.values():
        moved = row["read"] + row["written"]
        passes = {k: round(row[k] / CASES[case].nbytes, 2) for k in ("read", "written")}
        speed = {"us": row["ns"] / 1e3, "gb_per_s": moved / row["ns"]}
        yield {**CASES[case].fields, "kernel": row["kernel"], **passes, **speed}


def _profiled(case: Case, options: Options) -> None:
    """A training step and an evaluation, the second time seen by the profiler."""
    layer = RepresentativeBatchNorm2d(case.shape[1]).to(options.device)
    x, dy = random(case, options, 0).requires_grad_(), random(case, options, 1)
    for last in (False, True):
        torch.cuda.synchronize()
        if last:
            torch.cuda.cudart().cudaProfilerStart()  # type: ignore[no-untyped-call]
        layer.train()(x).backward(dy)
        with torch.no_grad():
            layer.eval()(x)
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    _profiled(CASES[int(sys.argv[1])], Options("cuda", "full", 60))
