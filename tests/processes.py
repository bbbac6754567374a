"""A process of its own, where a test needs one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def python(
    *arguments: object, folder: Path = ROOT, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """This Python with the package, which ends with this code; what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr
    return done
