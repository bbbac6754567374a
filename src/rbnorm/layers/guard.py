"""Whether the RBN layers of a model are still RBN after a tool that knows BatchNorm alone.

Two things see to it. The layer looks at a function that reads its running mean (not at each read,
at each function once) and refuses one that takes a BatchNorm from it. And a model remembers the
names of its RBN layers, for what got past the layer.
"""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import Parameter

from rbnorm.layers.options import NAMES

__all__ = ["assert_intact"]

# What is needed to compute BatchNorm from a layer, or to make another one; all that fuse, freeze,
# synchronise and convert read these. What estimates, resets or initialises statistics does not.
_TAKEN = {"running_mean", "running_var", "weight", "bias"}
_SIZES = {"eps", "num_features"}
_KNOWN = {"calibration", *NAMES}
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")

# What to do in the place of a tool, by its name; the first that fits.
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

_ORDINARY = (Tensor, Parameter)


def _strings(value: object) -> set[str]:
    values = value if isinstance(value, (tuple, list, set, frozenset)) else (value,)
    return {string for string in values if isinstance(string, str)}


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
    if "getattr" not in words:
        return words
    constants = (constant for inner in codes for constant in inner.co_consts)
    return words.union(*map(_strings, (*constants, *map(scope.get, words))))


def _takes_batchnorm(words: set[str]) -> bool:
    return words >= _TAKEN and bool(words & _SIZES) and not words & _KNOWN


def _may_read(layer: nn.Module, frame: FrameType) -> bool:
    """Whether the function of a frame has another use for the running mean than BatchNorm."""
    code, module = frame.f_code, frame.f_globals.get("__name__") or ""
    name = code.co_name
    if name == "<module>" or module.partition(".")[0] == "rbnorm":
        return True
    if name.startswith("test") or module.rpartition(".")[2].startswith("test"):
        return True
    own = (vars(kind).get(name) for kind in type(layer).__mro__)
    if any(getattr(method, "__code__", None) is code for method in own):
        return True
    return not _takes_batchnorm(_words(code, frame.f_globals))


def _judge(layer: nn.Module, frame: FrameType) -> None:
    """Refuse a tool that would put something else in the layer's place; remember all others."""
    asked = frame
    while frame.f_code.co_name in _COMPREHENSIONS and frame.f_back is not None:
        frame = frame.f_back
    if not _may_read(layer, frame):
        name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
        library = (frame.f_globals.get("__name__") or "somebody").partition(".")[0]
        remedy = next(text for word, text in _REMEDIES if re.search(word, name, re.IGNORECASE))
        raise ValueError(
            f"{name} of {library} knows BatchNorm alone and would lose the calibration of an RBN "
            f"layer; {remedy}"
        )
    if len(_harmless) >= _MANY:
        _harmless.clear()
    _harmless[id(asked.f_code)] = asked.f_code


class _RunningMean:
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
        if not torch.compiler.is_dynamo_compiling():
            frame = sys._getframe(1)
            if id(frame.f_code) not in _harmless:
                _judge(layer, frame)
        if type(layer).__getattr__ is not nn.Module.__getattr__:
            raise AttributeError("running_mean")  # so that Python asks the class
        return mean


class Guarded(nn.Module):
    """A layer that tools may not replace, and that is missed when one has."""

    #: Whether gamma was divided by R(w_b), so that the layer computes BatchNorm at first.
    preserved: bool = False

    running_mean: Any = _RunningMean()


# Where a model keeps the names of its layers: a plain attribute, so that copies have it too.
_MEMORY = "_rbn_layers"
# Layers of which somebody knows that they are BatchNorm again.
_released: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def remember(model: nn.Module) -> None:
    """Write down in a model which of its layers are RBN."""
    layers = {name: module for name, module in _named(model) if isinstance(module, Guarded)}
    _released.difference_update(layers.values())
    vars(model).pop(_MEMORY, None)
    if layers and model not in layers.values():
        vars(model)[_MEMORY] = tuple(layers)


def forget(model: nn.Module) -> None:
    """Let the layers of a model go: what becomes of them is meant."""
    for module in model.modules():
        vars(module).pop(_MEMORY, None)
        if isinstance(module, Guarded):
            _released.add(module)


def _named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _programmed(module: nn.Module) -> set[str]:
    """The names below a program, traced or exported, of what was an RBN layer in its model."""
    if isinstance(module, torch.jit.ScriptModule):
        return {""} if "RepresentativeBatchNorm" in getattr(module, "original_name", "") else set()
    if not isinstance(module, fx.GraphModule):
        return set()
    stacks = (node.meta.get("nn_module_stack") or {} for node in module.graph.nodes)
    levels = (level for stack in stacks for level in stack.values())
    return {path for path, kind in levels if "RepresentativeBatchNorm" in str(kind)}


def _is_reset(layer: Guarded) -> bool:
    """Whether a weight that conversion had divided is 1 everywhere."""
    weight: Tensor | None = layer._parameters.get("weight")
    weight = layer._buffers.get("weight") if weight is None else weight
    if not layer.preserved or weight is None or type(weight) not in _ORDINARY:
        return False
    if weight.is_meta or weight.layout != torch.strided:
        return False
    return weight.numel() > 0 and bool((weight == 1).all())


def _check_lost(modules: dict[str, nn.Module], present: list[str], expected: list[str]) -> None:
    lost = [name for name in expected if name not in present]
    if not lost:
        return
    kinds = [type(modules[name]).__name__ if name in modules else "nothing" for name in lost]
    pairs = ", ".join(f"{name!r} by {kind}" for name, kind in zip(lost, kinds, strict=True))
    raise ValueError(
        f"RBN layers were replaced and their calibration is lost: {pairs}; make the model again, "
        "and use rbnorm.convert_sync(model) to synchronise it, rbnorm.freeze(model) to freeze it, "
        "and no fusion of convolution and BatchNorm; if this is meant, rbnorm.assert_intact(model, "
        "[]) takes the model as it is"
    )


def assert_intact(model: nn.Module, expected: Iterable[str] | None = None) -> list[str]:
    """Raise if a tool turned RBN layers of a model into something else.

    Tools put a layer of their own in the place of every BatchNorm, RBN included, and lose the
    calibration without a word. The layer itself stops functions that read from it what BatchNorm
    is made of, and nothing of the calibration: its running mean and variance, ``weight`` and
    ``bias``, and ``eps`` or ``num_features``. So do all that fuse it with a convolution, freeze it
    or synchronise it. This function finds what was lost in another way::

        names = rbnorm.assert_intact(model)
        model = tool(model)
        rbnorm.assert_intact(model, names)

    A model remembers its layers from the call that converted it or looked at it last, and its
    copies do too; without ``expected`` the layers are those. It has nothing to remember where a
    tool makes a new model. Programs that ``torch.jit.trace`` and ``torch.export`` make of a model
    have its layers.

    Args:
        model: Any module.
        expected: Names of modules of the model that must be RBN layers; None for those that the
            model remembers.

    Returns:
        The names of all RBN layers of the model. It remembers these.

    Raises:
        ValueError: A layer was lost; the message names each, and what to do instead. Or an
            initialisation loop set the weight of a converted layer to 1, which conversion had
            divided by :math:`R(w_b)`.
    """
    modules = dict(_named(model))
    layers = {name: module for name, module in modules.items() if isinstance(module, Guarded)}
    present = list(layers)
    for name, module in modules.items():
        present += sorted(_join(name, inner) for inner in _programmed(module))
    if expected is None:
        memories = ((name, vars(module).get(_MEMORY, ())) for name, module in modules.items())
        remembered = [_join(name, inner) for name, names in memories for inner in names]
        expected = [name for name in remembered if modules.get(name) not in _released]
    _check_lost(modules, present, list(dict.fromkeys(expected)))
    reset = [name for name, layer in layers.items() if _is_reset(layer)]
    if reset:
        raise ValueError(
            f"the weight of converted layers was set to 1, which changes what the model computes: "
            f"{', '.join(map(repr, reset))}; initialise the model before convert_batchnorm, or "
            "convert it with preserve=False to train it from scratch"
        )
    remember(model)
    return list(dict.fromkeys(present))
