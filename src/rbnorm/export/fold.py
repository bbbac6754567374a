"""The static part of RBN layers into the convolutions and linear layers before them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from rbnorm.export.layer import FoldedRepresentativeBatchNorm, split
from rbnorm.modules import _is_bare, _RepresentativeBatchNorm
from rbnorm.revert import _evaluate

# Of the largest value of an output: a sum's rounding in the dtype, with a wide margin.
_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 1e-1,
    torch.float16: 2e-2,
}
_Inputs = Tensor | tuple[Any, ...]


@dataclass(frozen=True)
class LayerFold:
    """What became of one RBN layer.

    Attributes:
        into: Name of the layer that took the static part; None where the RBN layer stays.
        whole: Whether nothing is left to do for each instance.
        error: Largest difference of the layer's output on the given inputs, relative to the
            largest value; None where it was not tried.
        reason: Why the layer stays, or None.
    """

    into: str | None
    whole: bool
    error: float | None
    reason: str | None


@dataclass(frozen=True)
class FoldReport:
    """What folding did to a model.

    Attributes:
        model: The folded copy, in evaluation mode.
        layers: Per RBN layer what became of it.
        error: Largest difference of the outputs on the given inputs, relative to the largest value.
    """

    model: nn.Module
    layers: dict[str, LayerFold]
    error: float


@dataclass
class _Source:
    """A layer that can take a factor and a shift, and how its output is used."""

    name: str
    module: nn.Module
    calls: int = 0
    readers: int = 0


@dataclass(frozen=True)
class _Pair:
    """The modules that stand for a layer and for what comes before it."""

    source: nn.Module
    norm: FoldedRepresentativeBatchNorm


class _Trial(TorchDispatchMode):
    """One run of the model: which output each RBN layer reads, and who else reads it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: Any = WeakTensorKeyDictionary()
        self.found: dict[str, tuple[_Source | None, _Pair | None, LayerFold]] = {}
        self.inside = False
        self.handles = [
            handle for name, module in model.named_modules() for handle in self._watch(name, module)
        ]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if not self.inside:
            self._read((args, kwargs))
        return func(*args, **(kwargs or {}))

    def _read(self, tensors: object) -> None:
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, Tensor) and leaf in self.made:
                self.made[leaf][0].readers += 1

    def _watch(self, name: str, module: nn.Module) -> list[Any]:
        if isinstance(module, _RepresentativeBatchNorm):
            if not _is_bare(module, (type(module),)):
                self.found[name] = None, None, _stays("has hooks")
                return []
            return [
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(partial(self._leave, name), with_kwargs=True),
            ]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and _is_bare(
            module, (type(module),)
        ):
            source = _Source(name, module)
            return [module.register_forward_hook(partial(self._record, source))]
        return []

    def _record(self, source: _Source, module: nn.Module, args: Any, output: object) -> None:
        source.calls += 1
        if isinstance(output, Tensor) and args:
            self.made[output] = source, args[0]

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._read((args, kwargs))
        self.inside = True

    def _leave(
        self,
        name: str,
        norm: _RepresentativeBatchNorm,
        args: Any,
        kwargs: Any,
        output: Tensor,
    ) -> None:
        x = args[0] if args else kwargs["input"]
        rest = args[1:], {key: value for key, value in kwargs.items() if key != "input"}
        if name in self.found:
            self.found[name] = None, None, _stays("is called several times")
        elif x not in self.made:
            self.found[name] = None, None, _stays("follows no convolution or linear layer")
        else:
            source, entered = self.made[x]
            self.found[name] = (
                source,
                *_try(source, norm, entered, x, lambda new, u: new(u, *rest[0], **rest[1]), output),
            )
        self.inside = False


def _stays(reason: str, error: float | None = None) -> LayerFold:
    return LayerFold(None, False, error, reason)


def _try(
    source: _Source,
    norm: _RepresentativeBatchNorm,
    entered: Tensor,
    x: Tensor,
    call: Callable[[nn.Module, Tensor], Tensor],
    expected: Tensor,
) -> tuple[_Pair | None, LayerFold]:
    """Fold one layer, and compare on what entered the two."""
    if norm.running_mean is None:
        return None, _stays("has no running statistics")
    if not {"weight", "bias"} <= source.module._parameters.keys():
        return None, _stays(f"follows {source.name}, whose weight is not its own parameter")
    parts = split(norm)
    whole = parts.center is None and parts.gate is None
    if not whole and norm.calibration.statistic != "mean":
        return None, _stays(f"has the statistic {norm.calibration.statistic!r}")
    module = _scaled(source.module, parts.gain, parts.offset)
    pair = _Pair(module, FoldedRepresentativeBatchNorm(norm, parts, x))
    error = _error(call(pair.norm, module(entered)), expected)
    if error > _TOLERANCE[x.dtype]:
        return None, _stays(f"follows {source.name}, and differs after folding", error)
    return pair, LayerFold(source.name, whole, error, None)


def _scaled(source: nn.Module, gain: Tensor, offset: Tensor) -> nn.Module:
    """A module that computes ``gain * source(x) + offset``."""
    module = copy.copy(source)
    module._parameters, module._forward_hooks = dict(source._parameters), OrderedDict()
    weight, bias = module._parameters["weight"], module._parameters["bias"]
    assert weight is not None
    scaled = weight.double() * gain.reshape(-1, *(1,) * (weight.ndim - 1))
    shifted = offset if bias is None else offset + gain * bias.double()
    for name, value in (("weight", scaled), ("bias", shifted)):
        module._parameters[name] = Parameter(value.to(weight.dtype), weight.requires_grad)
    return module


def _error(actual: Tensor, expected: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.double(), expected.double()
    scale = float(expected.abs().max()) or 1.0
    return float((actual - expected).abs().max()) / scale


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def _run(model: nn.Module, inputs: _Inputs) -> tuple[list[Tensor], _Trial]:
    trial = _Trial(model)
    try:
        with trial:
            outputs = _evaluate(model, inputs)
            trial._read(outputs)
    finally:
        for handle in trial.handles:
            handle.remove()
    return outputs, trial


def fold(model: nn.Module, inputs: _Inputs) -> FoldReport:
    r"""Fold the static part of every RBN layer into the convolution or linear layer before it.

    In evaluation RBN is BatchNorm, which is an affine map per channel and folds exactly, followed
    by what depends on the instance:

    .. math::

        u = \gamma r (x - E), \quad y = g\,(u + w_m k + c) + \beta, \quad g = R(a k + b),
        \quad k = \mathrm{mean}(u)

    with constants :math:`a, b, c` per channel. The copy that is returned has the first step in the
    layer before, and a :class:`FoldedRepresentativeBatchNorm` for the second one: one reduction, a
    few numbers per instance and channel, one multiplication and addition per value. A layer with
    :math:`w_m = w_v = 0` folds wholly. The model is run once to see which convolution feeds which
    layer, and each folded pair is compared with the original on what it met there.

    A layer stays as it is, with a reason in the report, where it follows no Conv1d, 2d, 3d or
    Linear; where somebody else reads the convolution's output; where one of the two is called
    several times, has hooks, or is parametrised; without running statistics; with another statistic
    than the mean; or where the pair's output differs.

    Args:
        model: The model; it is not changed.
        inputs: A batch, or a tuple of arguments, for the trial run in evaluation mode.

    Returns:
        A :class:`FoldReport` with the folded copy in evaluation mode; it cannot be trained further.

    Raises:
        ValueError: The model has no RBN layer, or its outputs on ``inputs`` differ after folding.
    """
    folded = copy.deepcopy(model).eval()
    expected, trial = _run(folded, inputs)
    norms = {n: m for n, m in folded.named_modules() if isinstance(m, _RepresentativeBatchNorm)}
    if not norms:
        raise ValueError(f"model must have an RBN layer, got {type(model).__name__} without one")
    layers = {}
    for name, norm in norms.items():
        unreached = None, None, _stays("was not reached by the inputs")
        source, pair, layers[name] = trial.found.get(name, unreached)
        if source is None or pair is None:
            continue
        if source.calls > 1 or source.readers > 1:
            layers[name] = _stays(f"follows {source.name}, whose output others use too")
            continue
        _replace(folded, source.module, pair.source)
        _replace(folded, norm, pair.norm)
    outputs = _evaluate(folded, inputs)
    error = 0.0
    for actual, wanted in zip(outputs, expected, strict=True):
        error = max(error, _error(actual, wanted))
        if (
            wanted.is_floating_point()
            and not _error(actual, wanted) <= 10 * _TOLERANCE[wanted.dtype]
        ):
            raise ValueError(
                f"outputs must agree after folding to {10 * _TOLERANCE[wanted.dtype]:g} of their "
                f"largest value, got a difference of {error:g}: the model reads its layers' "
                "parameters or outputs in a way that one run does not show"
            )
    return FoldReport(folded, layers, error)
