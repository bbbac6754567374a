"""Which kernels run where, and why."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple, cast

from rbnorm import elementwise
from rbnorm.kernels import phases, triton
from rbnorm.kernels.installation import build_command, noticed
from rbnorm.kernels.phases import PHASES, Phases, Whole

_LIMITS = ("plain", "avx2", "avx512")


class Backend(NamedTuple):
    """What serves a device type, and what that follows from."""

    name: str
    why: str


class Kernels(NamedTuple):
    """What the layer runs on a device type."""

    phases: Phases
    whole: Whole | None = None  # the override


PORTABLE = Kernels(phases)


def _cpu() -> Backend:
    limit = os.environ.get("RBNORM_CPU", "")
    if limit and limit not in _LIMITS:
        raise ValueError(f"RBNORM_CPU must be one of {', '.join(_LIMITS)}, got {limit!r}")
    try:
        cpu = importlib.import_module("rbnorm.kernels.cpu.calls")
    except ModuleNotFoundError:
        return Backend(
            "portable",
            "this installation has no C++ kernels, since no C++ compiler was there for the build; "
            f"with one, {build_command()} makes them",
        )
    except (ImportError, AttributeError) as error:  # broken, or of another version
        return Backend("portable", f"the C++ kernels do not load: {error}")
    wrong = elementwise.mismatch("the C++ library", cpu.RESTRICTIONS, cpu.ACTIVATIONS)
    if wrong:
        return Backend("portable", wrong)
    _compiled["cpu"] = _of(cpu)
    return Backend("c++", f"instruction set {cpu.INSTRUCTION_SET}, {cpu.THREADS.why}")


def _cuda() -> Backend:
    if triton.missing():
        return Backend("portable", "Triton is not installed")
    _compiled["cuda"] = _of(triton)
    return Backend("triton", "compiled when a layer first runs on such a device, CUDA or ROCm")


_installed: dict[str, Backend] = {}  # of each device type
_compiled: dict[str, Kernels] = {}
_open: dict[object, dict[str, Kernels]] = {}  # what each open context chose, in their order
_lock = threading.Lock()
_active = _compiled


def _of(module: object) -> Kernels:
    """Of a module that has them under their names."""
    return Kernels(
        cast("Phases", module), Whole(*(getattr(module, name) for name in Whole._fields))
    )


def _load() -> None:
    """Find the compiled kernels that this installation has."""
    # By the phases alone training on a CPU takes 1.1 to 2.4 times as long on (32, 64, 56, 56) to
    # (32, 512, 7, 7), 3.0 on (8, 64, 8, 8) and 7.3 with its channels last; evaluation 0.9 to 1.9,
    # and 2.7 (float32, one thread, AVX-512). In Triton the tables are one launch instead of thirty,
    # which took forward and backward of (2, 16, 8, 8) from 966 to 511 us of an H200's host.
    _installed.update(cpu=_cpu(), cuda=_cuda())
    if "cpu" not in _compiled:
        why = _installed["cpu"].why
        plain = {name: noticed(getattr(phases, name), lambda: why) for name in PHASES}
        _compiled["cpu"] = Kernels(cast("Phases", SimpleNamespace(**plain)))


def active(device: str) -> Kernels:
    """What runs now on a device type."""
    return _active.get(device, PORTABLE)


def backends() -> dict[str, Backend]:
    """What runs the layer on each device type, and why: ``{"cpu": Backend(name, why), ...}``.

    The names are ``"c++"``, ``"triton"`` and ``"portable"``: plain PyTorch, which also serves
    every device type that is not listed, and everything under ``torch.compile``, tracers and
    ``torch.func``.
    """
    if _active is not _compiled:
        chosen = Backend("portable", 'chosen by use_backend("portable")')
        return dict.fromkeys(_installed, chosen)
    return dict(_installed)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every layer by the backend of this name, in all threads, while the context is open.

    Synchronised layers run by it too. Where several contexts are open, whoever opened them and in
    whatever order they end, the one that was opened last is in force.

    Args:
        name: ``"portable"``, or a name that :func:`backends` lists.

    Raises:
        ValueError: There is no such backend here; the sentence says why.
    """
    names = dict.fromkeys((backend.name for backend in _installed.values()), _compiled)
    names["portable"] = {}
    if name not in names:
        reasons = "; ".join(f"{device}: {backend.why}" for device, backend in _installed.items())
        raise ValueError(f"backend must be one of {', '.join(names)}, got {name!r} ({reasons})")
    context = object()
    _choose(context, names[name])
    try:
        yield
    finally:
        _choose(context, None)


def _choose(context: object, choice: dict[str, Kernels] | None) -> None:
    """Note what a context chose, or that it is over."""
    global _active  # noqa: PLW0603 - read at every call of a layer
    with _lock:
        if choice is None:
            del _open[context]
        else:
            _open[context] = choice
        _active = next(reversed(_open.values()), _compiled)


_load()
