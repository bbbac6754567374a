"""One run of a model that shows which layers can be folded, with the folded pair for each."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from rbnorm.diagnosis.passes import input_of
from rbnorm.export.layer import FoldedRepresentativeBatchNorm, Parts, split
from rbnorm.layers.base import _RepresentativeBatchNorm, rbn_layers
from rbnorm.layers.classes import is_bare
from rbnorm.models.revert import Inputs, outputs

# Share of an output's largest value: rounding of a sum in the dtype, with a wide margin.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 1e-1,
    torch.float16: 2e-2,
}


@dataclass(frozen=True)
class LayerFold:
    """What was done with one RBN layer.

    Attributes:
        into: Name of the layer that took the static part; None where the RBN layer stays.
        whole: Whether nothing is left to do for each instance.
        error: Largest difference of the layer's output on the given inputs, relative to the
            largest value, before constants took the place of anything; None where it was not tried.
        reason: Why the layer stays, or None.
        constant: Whether constants took the place of the calibration.
        effect: What that does to the model's outputs where nothing else is constant; None where it
            was not tried.
    """

    into: str | None
    whole: bool
    error: float | None
    reason: str | None
    constant: bool = False
    effect: float | None = None


class Pair(NamedTuple):
    """A layer that can take a factor and a shift, and the normaliser after it."""

    source: nn.Module
    norm: nn.Module


@dataclass
class Source:
    """The first of a pair, and how often it and its outputs were used."""

    name: str
    module: nn.Module
    calls: int = 0
    readers: int = 0


@dataclass
class Candidate:
    """An RBN layer, and what the run showed of it.

    Attributes:
        norm: The layer.
        outcome: What is done with it.
        source: What its static part, or constants, can go into.
        pair: What stands in the model in the places of the two.
        like: An empty input, for rank and dtype.
        reached: Whether it was called.
    """

    norm: _RepresentativeBatchNorm
    outcome: LayerFold = LayerFold(None, False, None, "was not reached by the inputs")
    source: Source | None = None
    pair: Pair | None = None
    like: Tensor = field(init=False)
    reached: bool = False

    def stay(self, reason: str, error: float | None = None) -> None:
        """The layer cannot be folded."""
        self.outcome, self.source, self.pair = LayerFold(None, False, error, reason), None, None

    def put(self, model: nn.Module, pair: Pair) -> Pair:
        """Replace the present pair in the model by another; return the one that was there."""
        old, self.pair = self.pair, pair
        assert old is not None
        places = {id(before): after for before, after in zip(old, pair, strict=True)}
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                if id(child) in places:
                    parent._modules[name] = places[id(child)]
        return old

    def folded(self, parts: Parts) -> Pair:
        """The pair for these parts."""
        assert self.source is not None
        scaled = _scaled(self.source.module, parts.gain, parts.offset)
        return Pair(scaled, FoldedRepresentativeBatchNorm(self.norm, parts, self.like))

    def compare(
        self, source: Source, x: Tensor, run: Callable[[Pair], Tensor], expected: Tensor
    ) -> None:
        """Fold the layer after its source, and compare on what entered the two."""
        if self.norm.running_mean is None:
            self.stay("has no running statistics")
            return
        if not {"weight", "bias"} <= source.module._parameters.keys():
            self.stay(f"follows {source.name}, whose weight is not its own parameter")
            return
        parts, statistic = split(self.norm), self.norm.calibration.statistic
        self.source, self.pair, self.like = source, Pair(source.module, self.norm), x[:0]
        if parts.instance and statistic != "mean":
            self.outcome = replace(self.outcome, reason=f"has the statistic {statistic!r}")
            return
        error = difference(run(self.folded(parts)), expected)
        self.outcome = LayerFold(source.name, not parts.instance, error, None)
        if not error <= TOLERANCE[x.dtype]:
            self.stay(f"follows {source.name}, and differs after folding", error)


def difference(actual: Tensor, expected: Tensor, origin: Tensor | float = 0.0) -> float:
    """Largest difference, relative to the largest distance from the origin."""
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.double(), expected.double()
    scale = float((expected - origin).abs().max()) or 1.0
    return float((actual - expected).abs().max()) / scale


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


class Watch(TorchDispatchMode):
    """Watches a run: whose output each RBN layer reads, and who else reads it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = {name: Candidate(layer) for name, layer in rbn_layers(model)}
        # Of every output of a source that still exists: the source, and what entered it.
        self._made: Any = WeakTensorKeyDictionary()
        self._inside = False
        self._handles: list[RemovableHandle] = []
        for name, module in model.named_modules():
            if not is_bare(module):
                if name in self.found:
                    self.found[name].stay("has hooks")
            elif name in self.found:
                leave = partial(self._leave, self.found[name])
                self._handles += [
                    module.register_forward_pre_hook(self._enter, with_kwargs=True),
                    module.register_forward_hook(leave, with_kwargs=True),
                ]
            elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                record = partial(self._record, Source(name, module))
                self._handles.append(module.register_forward_hook(record))

    def run(self, model: nn.Module, inputs: Inputs) -> list[Tensor]:
        """The outputs of the one run that is watched."""
        try:
            with self:
                found = outputs(model, inputs)
                self._read(found)
        finally:
            for handle in self._handles:
                handle.remove()
        for layer in self.found.values():
            source = layer.source
            if source is not None and (source.calls > 1 or source.readers > 1):
                layer.stay(f"follows {source.name}, whose output others use too")
        return found

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if not self._inside:
            self._read((args, kwargs))
        return func(*args, **(kwargs or {}))

    def _read(self, tensors: object) -> None:
        """Count a use of every source's output among these."""
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, Tensor) and leaf in self._made:
                self._made[leaf][0].readers += 1

    def _record(
        self, source: Source, module: nn.Module, args: tuple[Tensor, ...], output: object
    ) -> None:
        source.calls += 1
        if isinstance(output, Tensor) and args:
            self._made[output] = source, args[0]

    def _enter(self, norm: nn.Module, args: object, kwargs: object) -> None:
        self._read((args, kwargs))
        self._inside = True

    def _leave(
        self, layer: Candidate, norm: nn.Module, args: Any, kwargs: Any, output: Tensor
    ) -> None:
        x = input_of(args, kwargs)
        if layer.reached:
            layer.stay("is called several times")
        elif x not in self._made:
            layer.stay("follows no convolution or linear layer")
        else:
            source, entered = self._made[x]
            rest = {key: value for key, value in kwargs.items() if key != "input"}

            def run(pair: Pair) -> Tensor:
                return pair.norm(pair.source(entered), *args[1:], **rest)  # type: ignore[no-any-return]

            layer.compare(source, x, run, output)
        layer.reached = True
        self._inside = False
