"""``torch.ops.rbnorm.*``: schema, fake and portable implementation of each op, and who runs it.

``forward``, ``inference`` and ``backward`` are the whole layer in closed form; the others are its
sweeps over big tensors, for a layer that does something of its own between them. The dispatcher
chooses what runs. The portable implementation serves every device; a compiled one registers
itself for its own dispatch key and nothing above this package changes. The ops carry no autograd:
:mod:`rbnorm.autograd` owns the derivative of the whole layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rbnorm.kernels import fused, phases
from rbnorm.kernels.backends import active, backends, load, use_backend
from rbnorm.kernels.checks import checked
from rbnorm.kernels.installation import NoKernelsWarning, noticed

__all__ = ["SCHEMAS", "NoKernelsWarning", "active", "backends", "use_backend"]

_VECTORS = (
    "Tensor? weight, Tensor? bias, Tensor? center_weight, Tensor? scale_weight, Tensor? scale_bias"
)
_OPTIONS = "float eps, int restrict, int activation, float slope"
SCHEMAS = {
    "forward": f"(Tensor x, Tensor? residual, {_VECTORS}, Tensor(a!)? running_mean, "
    f"Tensor(b!)? running_var, bool training, float momentum, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "inference": f"(Tensor x, Tensor? residual, {_VECTORS}, Tensor running_mean, "
    f"Tensor running_var, {_OPTIONS}) -> Tensor",
    "backward": "(Tensor dy, Tensor x, Tensor? residual, Tensor m, Tensor E, Tensor V, "
    f"{_VECTORS}, bool training, {_OPTIONS}, bool want_dx, bool want_dresidual) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "mean": "(Tensor x) -> Tensor",
    "moments": "(Tensor x) -> (Tensor, Tensor)",
    "affine": "(Tensor x, Tensor? center, Tensor scale, Tensor shift) -> Tensor",
    "grad_moments": "(Tensor dy, Tensor x, Tensor center) -> (Tensor, Tensor)",
    "grad_affine": "(Tensor dy, Tensor x, Tensor center, Tensor dy_scale, Tensor x_scale, "
    "Tensor shift) -> Tensor",
}


def _table(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=phases.table_dtype(x.dtype))


def _vector(x: Tensor, size: int) -> Tensor:
    return x.new_empty(size, dtype=phases.table_dtype(x.dtype))


def _like(x: Tensor) -> Tensor:
    return phases.standard(torch.empty_like(x))


def _forward(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    C = x.shape[1]
    return _like(x), _table(x), _vector(x, C), _vector(x, C)


def _backward(dy: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    vectors, wanted = others[4:9], others[-2:]
    inputs = [_like(x) if want else x.new_empty(0) for want in wanted]
    return *inputs, *(_vector(x, 0 if v is None else x.shape[1]) for v in vectors)


FAKES: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "inference": lambda x, *_: _like(x),
    "backward": _backward,
    "mean": _table,
    "moments": lambda x: (_table(x), _table(x)),
    "affine": lambda x, *_: _like(x),
    "grad_moments": lambda dy, x, center: (_table(x), _table(x)),
    "grad_affine": lambda dy, x, *_: _like(x),
}

_library = torch.library.Library("rbnorm", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=[torch.Tag.pt2_compliant_tag])
    _implementation = getattr(fused if hasattr(fused, _name) else phases, _name)
    _portable = noticed(_implementation, lambda: backends()["cpu"].why)
    _library.impl(_name, checked(_name, _portable), "CompositeExplicitAutograd")
    # A call is a fake one already where a single tensor is on the meta device.
    torch.library.register_fake(f"rbnorm::{_name}", checked(_name, FAKES[_name]), lib=_library)
load(_library)
