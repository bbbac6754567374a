"""The sweeps over big tensors as ``torch.ops.rbnorm.*``: schema, fake and portable implementation.

The dispatcher chooses what runs. The portable implementation serves every device; a compiled one
registers itself for its own dispatch key and nothing above this package changes. The ops carry no
autograd: :mod:`rbnorm.closed_form` owns the derivative of the whole layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rbnorm.ops import portable

SCHEMAS = {
    "mean": "(Tensor x) -> Tensor",
    "moments": "(Tensor x) -> (Tensor, Tensor)",
    "affine": "(Tensor x, Tensor? center, Tensor scale, Tensor shift) -> Tensor",
    "grad_moments": "(Tensor dy, Tensor x, Tensor center) -> (Tensor, Tensor)",
    "grad_affine": "(Tensor dy, Tensor x, Tensor center, Tensor dy_scale, Tensor x_scale, "
    "Tensor shift) -> Tensor",
}


def _table(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=portable.table_dtype(x.dtype))


def _like_first(x: Tensor, *_: Tensor | None) -> Tensor:
    return portable.standard(torch.empty_like(x))


def _like_second(dy: Tensor, x: Tensor, *_: Tensor) -> Tensor:
    return portable.standard(torch.empty_like(x))


def _two_tables(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _table(x), _table(x)


FAKES: dict[str, Callable[..., Any]] = {
    "mean": _table,
    "moments": _two_tables,
    "affine": _like_first,
    "grad_moments": _two_tables,
    "grad_affine": _like_second,
}

_library = torch.library.Library("rbnorm", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=[torch.Tag.pt2_compliant_tag])
    _library.impl(_name, getattr(portable, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"rbnorm::{_name}", FAKES[_name], lib=_library)
