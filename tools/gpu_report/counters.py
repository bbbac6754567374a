"""What the hardware counts of each kernel at one shape, where Nsight Compute is there."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Iterator

import torch

from rbnorm import RepresentativeBatchNorm2d
from rbnorm_lab.bench.candidates import inputs
from rbnorm_lab.bench.cases import Case
from tools.gpu_report import Row

CASES = {
    layout: Case("counters", "training", "bfloat16", layout, (32, 256, 56, 56))
    for layout in ("channels_last", "nchw")
}
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes_read.sum": "read",
    "dram__bytes_write.sum": "written",
}


def counters(layout: str, device: torch.device) -> Iterator[Row]:
    """The kernels of a training step and of an evaluation, in their order."""
    if device.type != "cuda" or not shutil.which("ncu"):
        yield {"note": "ncu, Nsight Compute, is not on the PATH, or there is no device"}
        return
    command = ["ncu", "--csv", "--profile-from-start", "off", "--metrics", ",".join(METRICS)]
    command += ["--print-units", "base", sys.executable, "-m", "tools.gpu_report.counters", layout]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in found.stdout.splitlines() if line.startswith('"')]
    if not lines:
        raise RuntimeError(f"ncu: {found.stdout[-300:]} {found.stderr[-300:]}")
    rows: dict[str, Row] = {}
    for line in csv.DictReader(lines):
        if line["Metric Name"] in METRICS:
            row = rows.setdefault(line["ID"], {"kernel": line["Kernel Name"][:40]})
            row[METRICS[line["Metric Name"]]] = float(line["Metric Value"].replace(",", ""))
    case = CASES[layout]
    for row in rows.values():
        moved = {k: round(row[k] / case.nbytes, 2) for k in ("read", "written")}
        speed = (row["read"] + row["written"]) / row["ns"]
        yield {
            **{"mode": case.mode, "dtype": case.dtype, "shape": case.size},
            "layout": "contiguous" if layout == "nchw" else layout,
            **{"kernel": row["kernel"], **moved, "us": row["ns"] / 1e3, "gb_per_s": speed},
        }


def _profiled(case: Case) -> None:
    """A training step and an evaluation, the second time seen by the profiler."""
    device = torch.device("cuda")
    layer = RepresentativeBatchNorm2d(case.shape[1]).to(device)
    x, dy = inputs(case, device)[0]
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
    _profiled(CASES[sys.argv[1]])
