"""``torch.ops.rbnorm.*``: schema, fake and portable form of each op, and who runs it.

``mean``, ``moments``, ``affine``, ``grad_moments`` and ``grad_affine`` are the phases, the contract
of a backend: :class:`rbnorm.kernels.phases.Phases`. ``forward``, ``inference`` and ``backward`` are
the whole layer by one call each, which a backend may override: in C++ a channel stays in the cache
from phase to phase, in Triton no Python runs between the launches. The portable form serves every
device; a compiled one registers itself for its own dispatch key, and :mod:`rbnorm.kernels.backends`
knows it. The ops carry no autograd: :mod:`rbnorm.engine.autograd` differentiates the layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rbnorm.engine import layer
from rbnorm.kernels import phases
from rbnorm.kernels.backends import Kernels, active, backends, load, use_backend
from rbnorm.kernels.checks import checked
from rbnorm.kernels.installation import NoKernelsWarning

__all__ = ["SCHEMAS", "Kernels", "NoKernelsWarning", "active", "backends", "use_backend"]

_VECTORS = (
    "Tensor? weight, Tensor? bias, Tensor? center_weight, Tensor? scale_weight, Tensor? scale_bias"
)
_OPTIONS = "float eps, int restrict, int activation, float slope"
_EPILOGUE = "Tensor? residual, int activation, float slope"
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
    "affine": f"(Tensor x, Tensor? m, Tensor scale, Tensor shift, {_EPILOGUE}) -> Tensor",
    "grad_moments": "(Tensor dy, Tensor x, Tensor m, Tensor? scale, Tensor? shift, "
    f"{_EPILOGUE}) -> (Tensor, Tensor)",
    "grad_affine": "(Tensor dy, Tensor x, Tensor m, Tensor scale, Tensor? shift, Tensor? x_scale, "
    f"Tensor u, {_EPILOGUE}, bool want_dx, bool want_dresidual) -> (Tensor, Tensor)",
}
OPS = {name: getattr(phases if name in phases.PHASES else layer, name) for name in SCHEMAS}


def _table(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=phases.table_dtype(x.dtype))


def _vector(x: Tensor, size: int) -> Tensor:
    return x.new_empty(size, dtype=phases.table_dtype(x.dtype))


def _like(x: Tensor) -> Tensor:
    return phases.standard(torch.empty_like(x))


def _forward(x: Tensor, *_: object) -> tuple[Tensor, ...]:
    C = x.shape[1]
    return _like(x), _table(x), _vector(x, C), _vector(x, C)


def _wanted(dy: Tensor, x: Tensor, *others: object) -> tuple[Tensor, ...]:
    return tuple(_like(x) if want else x.new_empty(0) for want in others[-2:])


def _backward(dy: Tensor, x: Tensor, *others: object) -> tuple[Tensor, ...]:
    vectors = (_vector(x, 0 if v is None else x.shape[1]) for v in others[4:9])
    return *_wanted(dy, x, *others), *vectors


FAKES: dict[str, Callable[..., object]] = {
    "forward": _forward,
    "inference": lambda x, *_: _like(x),
    "backward": _backward,
    "mean": _table,
    "moments": lambda x: (_table(x), _table(x)),
    "affine": lambda x, *_: _like(x),
    "grad_moments": lambda dy, x, *_: (_table(x), _table(x)),
    "grad_affine": _wanted,
}

_library = torch.library.Library("rbnorm", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=[torch.Tag.pt2_compliant_tag])
    _library.impl(_name, checked(_name, OPS[_name]), "CompositeExplicitAutograd")
    # A call is a fake one already where a single tensor is on the meta device.
    torch.library.register_fake(f"rbnorm::{_name}", checked(_name, FAKES[_name]), lib=_library)
load(_library)
