"""The OpenMP runtime that torch has loaded: the kernels take its threads, and load no other."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

_NAMES = ("libgomp.so.1", "libiomp5.so", "libomp.so.5", "libomp.so")
_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


class Threads(NamedTuple):
    """The functions that start a team of threads, 0 for none, and what to say of them."""

    addresses: tuple[int, int, int]
    why: str


def loaded() -> list[str]:
    """The files of the OpenMP runtimes in this process, as far as the system tells."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return sorted(set(re.findall(r"/\S*lib(?:gomp|iomp5|omp)[-.][^\s/]*", maps)))


def find() -> Threads:
    """The runtime that torch has loaded."""
    if sys.platform != "linux":
        return Threads((0, 0, 0), "one thread: OpenMP is looked for on Linux alone")
    for name in (*_NAMES, *loaded()):
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            functions = [getattr(library, function) for function in _FUNCTIONS]
        except (OSError, AttributeError):
            continue
        a, b, c = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
        others = len(loaded()) - 1
        also = f", one of {others + 1} OpenMP runtimes in this process" if others > 0 else ""
        return Threads((a, b, c), f"threads of the {name} that torch has loaded{also}")
    return Threads((0, 0, 0), "one thread: torch has loaded no OpenMP runtime")
