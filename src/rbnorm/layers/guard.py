"""A layer's guard against tools that know only BatchNorm and would put one in its place.

What fuses, freezes, synchronises or converts a BatchNorm reads from it all that BatchNorm is made
of, and nothing of the calibration. So the layer looks at each function that reads its running mean,
once, and refuses one whose code names the former without the latter.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from rbnorm.layers.options import NAMES

# Code that estimates, resets or initialises statistics reads fewer of these.
_TAKEN = {"running_mean", "running_var", "weight", "bias"}
_SIZES = {"eps", "num_features"}
# Methods that set values in place: with one of them, and without a size, it is initialisation.
_SETTERS = {"constant_", "fill_", "normal_", "ones_", "uniform_", "zero_", "zeros_"}
_KNOWN = {"calibration", *NAMES}

# What to use instead of a tool, by a pattern of its name; the first that matches.
_REMEDIES = (
    ("sync", "use rbnorm.convert_sync(model)"),
    ("freez|frozen", "use rbnorm.freeze(model)"),
    ("split", "leave the batch in one piece"),
    (
        "prune",
        "pass customized_pruners=rbnorm.integrations.torch_pruning.PRUNERS to torch-pruning",
    ),
    ("fus|merge|fold|param|efficient", "rbnorm.export.fold(model, inputs) fuses what can be fused"),
    ("", "rbnorm.revert_batchnorm(model, inputs) makes BatchNorm of it and tells what that loses"),
)

# Functions that may read; by their identity, since code objects are compared by their content.
_harmless: dict[int, CodeType] = {}
_MANY = 10_000


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function and those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _words(code: CodeType, scope: Mapping[str, object]) -> set[str]:
    """The attributes that a function reads, in ``getattr`` too."""
    codes = list(_codes(code))
    words = {name for inner in codes for name in inner.co_names}
    if "getattr" in words:
        values = [constant for inner in codes for constant in inner.co_consts]
        for value in (*values, *map(scope.get, words)):
            several = isinstance(value, (tuple, list, set, frozenset))
            words = words.union(v for v in (value if several else (value,)) if isinstance(v, str))
    return words


def _judge(frame: FrameType) -> None:
    """Refuse a tool that would replace the layer; remember every other function."""
    asked = frame.f_code
    while frame.f_code.co_name.endswith("comp>") and frame.f_back is not None:
        frame = frame.f_back
    code, module = frame.f_code, frame.f_globals.get("__name__") or "somebody"
    words = set() if code.co_name == "<module>" else _words(code, frame.f_globals)
    takes = words >= _TAKEN and bool(words & _SIZES or not words & _SETTERS)
    if takes and not words & _KNOWN:
        name = getattr(code, "co_qualname", code.co_name)
        remedy = next(text for word, text in _REMEDIES if re.search(word, name, re.IGNORECASE))
        raise ValueError(
            f"{name} of {module.partition('.')[0]} knows only BatchNorm and would lose the "
            f"calibration of an RBN layer; {remedy}; where it only looks, set layer.guarded = False"
        )
    if len(_harmless) >= _MANY:
        _harmless.clear()
    _harmless[id(asked)] = asked


class RunningMean:
    """The buffer, which a tool that takes a BatchNorm from the layer must read.

    Faster than the way on which torch looks for buffers. An attribute of the instance goes before
    it, as it does with BatchNorm, and where there is neither, torch says so.
    """

    def __get__(self, layer: nn.Module | None, owner: type | None = None) -> Any:
        if layer is None:
            return self
        try:
            mean = layer._buffers["running_mean"]
        except KeyError:
            raise AttributeError("running_mean") from None
        if layer.guarded and not torch.compiler.is_dynamo_compiling():
            frame = sys._getframe(1)
            if id(frame.f_code) not in _harmless:
                _judge(frame)
        if type(layer).__getattr__ is not nn.Module.__getattr__:
            raise AttributeError("running_mean")  # so that Python asks the class
        return mean
