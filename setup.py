"""The C++ kernels, where a compiler is there for the build, and the README for an index.

Without kernels the package installs and works all the same; why there are none is said here (``pip
install -v`` shows it) and by ``rbnorm.backends()``. All else is pyproject.toml.
"""

import os
import platform
import re
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError

CSRC = Path("src/rbnorm/kernels/cpu/csrc")


def say(reason: str) -> None:
    """Say why this installation runs in plain PyTorch."""
    print(f"rbnorm: no C++ kernels: {reason}", file=sys.stderr)


def kernels() -> Extension:
    """One library for every torch, of which it knows nothing, and for every Python since 3.10."""
    files = ["module", "plain"]
    if platform.machine().lower() in {"x86_64", "amd64"}:
        files += ["avx2", "avx512"]
    # After Python's own flags, which ask for debug symbols; CXXFLAGS may set another level.
    optimise = [] if "-O" in os.environ.get("CXXFLAGS", "") else ["-O2", "-g0"]
    return Extension(
        "rbnorm.kernels.cpu._kernels",
        sources=[str(CSRC / f"{name}.cpp") for name in files],
        depends=[str(header) for header in sorted(CSRC.glob("*.h"))],
        define_macros=[("Py_LIMITED_API", "0x030a0000")],
        extra_compile_args=["-std=c++17", *optimise, "-fvisibility=hidden", "-Wno-psabi"],
        py_limited_api=True,
        language="c++",
    )


class ParallelBuild(build_ext):
    """Compiles the instruction sets side by side."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension, its sources in parallel; go without it where that fails."""
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor() as pool:
                objects = pool.map(lambda source: compile_all([source], **options), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_each
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            say(str(error))
            self.extensions = self.distribution.ext_modules = []


class Sources(build_py):
    """Every build has it, and once."""

    def run(self) -> None:
        """Say what the build lacks, then build."""
        if reason is not None:
            say(reason)
        super().run()


class Wheel(bdist_wheel):
    """The tag of the stable ABI only for what has kernels; else any Python and machine will do."""

    def run(self) -> None:
        """Build the kernels first, since the tag depends on them."""
        self.run_command("build_ext")
        if not self.distribution.ext_modules:
            self.root_is_pure = True
        super().run()


def repository() -> str | None:
    """The project's address: ``[project.urls]``, else that of the workflow that builds."""
    given = re.search(r'^Repository = "(.+)"$', Path("pyproject.toml").read_text(), re.MULTILINE)
    if given is not None:
        return given[1].removesuffix("/")
    name = os.environ.get("GITHUB_REPOSITORY")
    host = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    return f"{host}/{name}" if name else None


def readme(address: str | None) -> str:
    """README.md as it reads away from the repository: links to its files lead there, or go."""
    version = runpy.run_path("src/rbnorm/_version.py")["__version__"]
    text = Path("README.md").read_text(encoding="utf-8")
    file = r"\((?![\w+]+:|#)([^)\s]+)\)"
    if address is None:
        return re.sub(rf"\[([^][]*)\]{file}", r"\1", re.sub(rf"!\[[^]]*\]{file}", "", text))
    text = re.sub(rf"(!\[[^]]*\]){file}", rf"\1({address}/raw/v{version}/\2)", text)
    return re.sub(rf"\]{file}", rf"]({address}/blob/v{version}/\1)", text)


reason = "they are not built on Windows" if sys.platform == "win32" else None
setup(
    long_description=readme(repository()),
    long_description_content_type="text/markdown",
    cmdclass={"build_ext": ParallelBuild, "build_py": Sources, "bdist_wheel": Wheel},
    ext_modules=[kernels()] if reason is None else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if reason is None else {},
)
