"""How this installation came about, and the command that builds it anew with kernels."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import wraps
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from torch import Tensor

Others = ParamSpec("Others")
Output = TypeVar("Output")


class NoKernelsWarning(UserWarning):
    """Layers on a CPU run in plain PyTorch, since this installation has no C++ kernels.

    It is given once in a process, when a layer first runs there, and says how to get them.
    ``warnings.filterwarnings("ignore", category=rbnorm.NoKernelsWarning)`` silences it, and so
    does choosing plain PyTorch by ``rbnorm.use_backend("portable")``.
    """


def _source_tree() -> Path | None:
    """The tree of the sources that this package was imported from, if it was."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "setup.py").is_file() else None


def _origin() -> str | None:
    """What pip installed: a path or URL, as pip takes it (PEP 610); None for an index."""
    try:
        text = distribution("rbnorm").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    if text is None:
        return None
    record = json.loads(text)
    url = str(record["url"])
    if "vcs_info" in record:
        vcs = record["vcs_info"]
        return f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    parts = urlsplit(url)
    return unquote(parts.path) if parts.scheme == "file" else url


def build_command() -> str:
    """The commands that install this version again, with kernels."""
    origin = _source_tree() or _origin()
    if origin is None or str(origin).endswith(".whl"):  # a wheel has no sources
        what = "--no-binary rbnorm rbnorm" if origin is None else "PATH_OR_URL_OF_THE_SOURCES"
    else:
        what = f'"{origin}"'
    return f"pip install --force-reinstall --no-deps {what}"


def noticed(
    implementation: Callable[Concatenate[Tensor, Others], Output], why: Callable[[], str]
) -> Callable[Concatenate[Tensor, Others], Output]:
    """An op in plain PyTorch that says so, once in a process, when it runs on a CPU."""

    @wraps(implementation)
    def call(x: Tensor, /, *arguments: Others.args, **options: Others.kwargs) -> Output:
        if x.device.type == "cpu" and not _notice:
            _notice.append(why())
            warnings.warn(
                f"RBN runs in plain PyTorch on this CPU, several times slower than it could: "
                f"{_notice[0]}",
                NoKernelsWarning,
                stacklevel=2,
            )
        return implementation(x, *arguments, **options)

    return call


_notice: list[str] = []
