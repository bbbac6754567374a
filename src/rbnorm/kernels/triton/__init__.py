"""The ops on CUDA and ROCm devices, one Triton source for both.

Nothing of Triton is imported before an op is first called on such a device. The ops are opaque to
compilers, which trace the table form in plain PyTorch instead and fuse it with its neighbours.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from rbnorm.kernels.checks import checked
from rbnorm.kernels.phases import PHASES, Whole


def _deferred(module: str, name: str) -> Callable[..., Any]:
    """A function of one of the modules here, which is imported when it is first called."""
    function: Callable[..., object] | None = None

    def call(*args: object) -> object:
        nonlocal function
        if function is None:
            function = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return function(*args)

    return call


# The whole layer past the dispatcher, which takes Python to Python here and costs as much as two
# launches; forward and inference look at their arguments themselves, backward trusts autograd.
DIRECT = Whole(*(_deferred("layer", name) for name in Whole._fields))
OPS = {**DIRECT._asdict(), **{name: _deferred("phases", name) for name in PHASES}}


def register(library: torch.library.Library, key: str = "CUDA") -> str | None:
    """Register every op of ``OPS`` in ``library`` for a dispatch ``key``; ROCm's is CUDA too.

    ``library`` must have defined them. Returns None, or why nothing was registered.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    for name, function in OPS.items():
        library.impl(name, checked(name, function), key)
    return None
