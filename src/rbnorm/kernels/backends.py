"""Which implementation of the ops runs where, and why."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from rbnorm.kernels import fused, triton
from rbnorm.kernels.installation import build_command


class Backend(NamedTuple):
    """What serves a device type, and what that follows from."""

    name: str
    why: str


def _cpu() -> Backend:
    try:
        module = importlib.import_module("rbnorm.kernels._cpu")
    except ModuleNotFoundError:
        return Backend(
            "portable",
            "this installation has no C++ kernels: no C++ compiler, or no torch, was there for "
            f"the build; with both there, {build_command()} makes them",
        )
    except ImportError as error:
        return Backend("portable", f"the C++ kernels do not load in this torch: {error}")
    return Backend("c++", f"instruction set {module.instruction_set}")


def _cuda(library: torch.library.Library) -> Backend:
    reason = triton.register(library)
    if reason is not None:
        return Backend("portable", reason)
    return Backend("triton", "compiled when a layer first runs on such a device, CUDA or ROCm")


_found: dict[str, Backend] = {}
_dispatched = SimpleNamespace()
_portable = SimpleNamespace(
    forward=fused.forward, inference=fused.inference, backward=fused.backward, checks=()
)
_state = SimpleNamespace(active=_dispatched)


def load(library: torch.library.Library) -> None:
    """Register the compiled implementations that this installation has; ``library`` has the ops."""
    _found["cpu"] = _cpu()
    _found["cuda"] = _cuda(library)
    for name in ("forward", "inference", "backward"):
        setattr(_dispatched, name, getattr(torch.ops.rbnorm, name).default)
    # The device types whose ops look at their arguments themselves, at less cost than we would.
    _dispatched.checks = tuple(device for device, b in _found.items() if b.name == "c++")


def active() -> Any:
    """The ``forward`` and ``backward`` in use now."""
    return _state.active


def backends() -> dict[str, Backend]:
    """What runs the layer on each device type, and why: ``{"cpu": Backend(name, why), ...}``.

    The names are ``"c++"``, ``"triton"`` and ``"portable"``: plain PyTorch, which also serves
    every device type that is not listed, and everything under ``torch.compile``, tracers and
    ``torch.func``.
    """
    if _state.active is _portable:
        chosen = Backend("portable", 'chosen by use_backend("portable")')
        return dict.fromkeys(_found, chosen)
    return dict(_found)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every layer by the backend of this name, in all threads, while the context is open.

    Args:
        name: ``"portable"``, or a name that :func:`backends` lists.

    Raises:
        ValueError: There is no such backend here; the sentence says why.
    """
    names = {found.name: _dispatched for found in _found.values()} | {"portable": _portable}
    if name not in names:
        reasons = "; ".join(f"{device}: {found.why}" for device, found in _found.items())
        raise ValueError(f"backend must be one of {', '.join(names)}, got {name!r} ({reasons})")
    before, _state.active = _state.active, names[name]
    try:
        yield
    finally:
        _state.active = before
