"""The C++ kernels, where a compiler and torch are there for the build; all else is pyproject.toml.

Without them the package installs and works all the same, and ``rbnorm.backends()`` says so.
"""

import importlib.util
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("src/rbnorm/kernels/csrc")
LINUX = sys.platform == "linux"


def kernels() -> Extension | None:
    """One library for every torch since 2.11 and every Python since 3.10."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None or sys.platform == "win32":
        return None
    torch = Path(found.origin).parent
    files = ["ops", "plain"]
    if platform.machine().lower() in {"x86_64", "amd64"}:
        files += ["avx2", "avx512"]
    # After Python's own flags, which ask for debug symbols; CXXFLAGS may set another level.
    optimise = [] if "-O" in os.environ.get("CXXFLAGS", "") else ["-O2", "-g0"]
    # Without OpenMP torch's parallel_for runs on one thread.
    openmp = ["-fopenmp"] if LINUX else []
    return Extension(
        "rbnorm.kernels._cpu",
        sources=[str(CSRC / f"{name}.cpp") for name in files],
        depends=[str(header) for header in sorted(CSRC.glob("*.h"))],
        include_dirs=[str(torch / "include")],
        library_dirs=[str(torch / "lib")],
        libraries=["torch_cpu"] if LINUX else [],
        define_macros=[
            ("Py_LIMITED_API", "0x030a0000"),
            ("TORCH_TARGET_VERSION", "0x020b000000000000"),
        ],
        extra_compile_args=["-std=c++17", *optimise, "-fvisibility=hidden", "-Wno-psabi", *openmp],
        extra_link_args=[*openmp, *([] if LINUX else ["-undefined", "dynamic_lookup"])],
        py_limited_api=True,
        language="c++",
        optional=True,
    )


class ParallelBuild(build_ext):
    """Compiles the instruction sets side by side."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension, its sources in parallel."""
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor() as pool:
                objects = pool.map(lambda source: compile_all([source], **options), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_each
        super().build_extension(ext)


extension = kernels()
setup(
    cmdclass={"build_ext": ParallelBuild},
    ext_modules=[] if extension is None else [extension],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extension else {},
)
