"""The C++ ops under valgrind: ``python tests/memcheck.py`` fails where they err with memory.

Valgrind sees what the sanitizers do not: a result that was never written. It runs the AVX2 kernels
at most, and takes minutes to start torch, so the cases are few and small. Only errors with a frame
of the kernels' library count; Python and torch have some of their own.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import torch
from direct import NAMES, ON, named

from rbnorm.elementwise import ACTIVATION_OF

SHAPES = [(3, 19), (2, 3, 45), (2, 35, 3, 3), (1, 2, 92, 93), (3, 1, 1, 1)]
LIBRARY = "_kernels.abi3.so"


def cases() -> None:
    """Every op, layout and dtype; reads every number that comes back."""
    for op in NAMES:
        for shape in SHAPES:
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                for layout in ("contiguous", "channels_last"):
                    args = named(op, shape, dtype, layout)
                    for activation in ACTIVATION_OF if "activation" in args else [None]:
                        args |= {} if activation is None else {"activation": activation}
                        if "want_dresidual" in args:
                            args["want_dresidual"] = bool(activation)
                        found = getattr(ON["c++"], op)(*args.values())
                        for t in found if isinstance(found, tuple) else [found]:
                            assert t is None or t.isfinite().all()
    print("all cases ran")


def errors(report: Path) -> list[str]:
    """The errors of a valgrind report in which the kernels had a part."""
    found = []
    for error in ET.parse(report).getroot().iter("error"):
        frames = list(error.iter("frame"))
        ours = [frame for frame in frames if frame.findtext("obj", "").endswith(LIBRARY)]
        if ours:
            what = error.findtext("what") or error.findtext("xwhat/text", "")
            shown = [frame.findtext("fn") or frame.findtext("obj", "?") for frame in ours]
            found.append("\n    ".join([what, *shown]))
    return found


def main() -> int:
    """Run the cases in valgrind and read its report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["--track-origins=yes", "--leak-check=no", "--xml=yes", f"--xml-file={report}"]
        command = ["valgrind", "-q", *options, sys.executable, __file__, "cases"]
        # Python's own allocator and a second thread would hide errors or invent some.
        environment = {**os.environ, "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, env=environment, check=False)
        found = errors(report)
    print(f"valgrind: {len(found)} errors in {LIBRARY}", *found, sep="\n")
    return 1 if found or run.returncode else 0


if __name__ == "__main__":
    sys.exit(cases() if sys.argv[1:] == ["cases"] else main())
