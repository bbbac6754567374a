"""The phases and the whole layer on CUDA and ROCm devices, one Triton source for both.

Nothing of Triton is imported before one of them is first called. Compilers trace the table form in
plain PyTorch instead, and fuse it with its neighbours.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from rbnorm.kernels.phases import PHASES, Whole


def missing() -> bool:
    """Whether there is no Triton here."""
    return importlib.util.find_spec("triton") is None


def _deferred(module: str, name: str) -> Callable[..., Any]:
    """A function of one of the modules here, which is imported when it is first called."""
    function: Callable[..., object] | None = None

    def call(*args: object) -> object:
        nonlocal function
        if function is None:
            function = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return function(*args)

    return call


forward, inference, backward = (_deferred("layer", name) for name in Whole._fields)
mean, moments, affine, grad_moments, grad_affine = (_deferred("phases", name) for name in PHASES)
