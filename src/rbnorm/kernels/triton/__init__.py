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

OPS = (
    "forward",
    "inference",
    "backward",
    "mean",
    "moments",
    "affine",
    "grad_moments",
    "grad_affine",
)


def _deferred(name: str) -> Callable[..., Any]:
    """The launcher ``name``, imported when it is first called."""
    found: Callable[..., object] | None = None

    def call(*args: object) -> object:
        nonlocal found
        if found is None:
            found = getattr(importlib.import_module("rbnorm.kernels.triton.launch"), name)
        return found(*args)

    return call


# The whole layer past the dispatcher, which takes Python to Python here and costs as much as two
# launches; forward and inference look at their arguments themselves, backward trusts autograd.
DIRECT = {name: _deferred(name) for name in ("forward", "inference", "backward")}


def register(library: torch.library.Library, key: str = "CUDA") -> str | None:
    """Register every op of ``OPS`` in ``library`` for a dispatch ``key``; ROCm's is CUDA too.

    ``library`` must have defined them. Returns None, or why nothing was registered.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    for name in OPS:
        library.impl(name, checked(name, _deferred(name)), key)
    return None
