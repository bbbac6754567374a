"""The tests of ``triton_kernels``, each file in a process of its own, which interprets."""

from pathlib import Path

import pytest
from processes import python

pytest.importorskip("triton", reason="Triton is installed on Linux only")

HERE = Path(__file__).parent
FILES = sorted((HERE / "triton_kernels").glob("test_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_kernels_are_right_in_the_interpreter(path: Path) -> None:
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", path, TRITON_INTERPRET="1")
