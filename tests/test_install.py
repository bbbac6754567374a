"""What an installation has where a compiler, or torch, was missing when it was built."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rbnorm

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(rbnorm.__file__).parent
KERNELS = "_cpu.abi3.so"

DECIDE = """
import json, sys
import setuptools
from distutils.core import run_setup
{hide}
found = run_setup("setup.py", stop_after="init")
tag = found.command_options.get("bdist_wheel", {{}}).get("py_limited_api", [None, None])[1]
print(json.dumps([[extension.name for extension in found.ext_modules or []], tag]))
"""
SAY = """
import json, torch, rbnorm
layer, x = rbnorm.RepresentativeBatchNorm2d(3), torch.randn(2, 3, 4, 4)
assert torch.allclose(layer(x), 0.7310585786 * torch.nn.BatchNorm2d(3)(x), rtol=0, atol=1e-6)
print(json.dumps([rbnorm.__file__, *rbnorm.backends()["cpu"]]))
"""


def run(code: str, **environment: str) -> list:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("hide", "expected"),
    [("", [["rbnorm.kernels._cpu"], "cp310"]), ("sys.modules['torch'] = None", [[], None])],
    ids=["torch is there", "torch is hidden"],
)
@pytest.mark.skipif(sys.platform == "win32", reason="there are no kernels for Windows")
def test_build_has_kernels_where_torch_is_there(hide: str, expected: list) -> None:
    assert run(DECIDE.format(hide=hide)) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' compilers have other names")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ on the PATH")
def test_kernels_are_there_where_a_compiler_is() -> None:
    assert rbnorm.backends()["cpu"].name == "c++"


def test_build_without_a_compiler_gives_the_package_without_kernels(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info")
    )
    compiler = str(tmp_path / "missing")
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", "--build-lib", "library"],
        cwd=tmp_path,
        env={**os.environ, "CC": compiler, "CXX": compiler},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "library/rbnorm/modules.py").is_file()
    assert not list((tmp_path / "library").rglob("*.so"))


@pytest.mark.parametrize(
    ("kernels", "why"),
    [
        (None, "no C++ compiler, or no torch, was there for the build"),
        (b"not a library", "the C++ kernels do not load in this torch: "),
    ],
    ids=["no kernels", "kernels that do not load"],
)
def test_installation_without_kernels_works_and_says_why(
    tmp_path: Path, kernels: bytes | None, why: str
) -> None:
    copy = tmp_path / "rbnorm"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if kernels is not None:
        (copy / "kernels" / KERNELS).write_bytes(kernels)
    file, name, reason = run(SAY, PYTHONPATH=str(tmp_path))
    assert Path(file).parent == copy
    assert name == "portable"
    assert why in reason
