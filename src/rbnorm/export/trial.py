"""One run of a model that shows which layers can be folded, with the folded pair for each."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from rbnorm.export.layer import FoldedRepresentativeBatchNorm, Parts, split
from rbnorm.layers.base import _RepresentativeBatchNorm, input_of
from rbnorm.layers.classes import is_bare

# Of the largest value of an output: a sum's rounding in the dtype, with a wide margin.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 1e-1,
    torch.float16: 2e-2,
}


@dataclass(frozen=True)
class LayerFold:
    """What became of one RBN layer.

    Attributes:
        into: Name of the layer that took the static part; None where the RBN layer stays.
        whole: Whether nothing is left to do for each instance.
        error: Largest difference of the layer's output on the given inputs, relative to the
            largest value, before constants took the place of anything; None where it was not tried.
        reason: Why the layer stays, or None.
        constant: What constants took the place of: "calibration", "gate", or None for nothing.
        effect: What that does to the model's outputs where nothing else is constant, or nothing
            but whole calibrations for a gate; None where it was not tried.
    """

    into: str | None
    whole: bool
    error: float | None
    reason: str | None
    constant: str | None = None
    effect: float | None = None


@dataclass
class Source:
    """A layer that can take a factor and a shift, and how often it and its outputs were used."""

    name: str
    module: nn.Module
    calls: int = 0
    readers: int = 0


class Pair(NamedTuple):
    """What takes the places of a source and of the RBN layer after it."""

    source: nn.Module
    norm: nn.Module


class Found(NamedTuple):
    """What the run showed of one RBN layer.

    With a ``source`` its static part can be folded; ``pair`` is what takes its place then, or the
    source and the layer themselves, where only constants could.
    """

    outcome: LayerFold
    source: Source | None = None
    pair: Pair | None = None


def stays(reason: str, error: float | None = None) -> Found:
    """The layer cannot be folded."""
    return Found(LayerFold(None, False, error, reason))


def pair_of(source: nn.Module, norm: _RepresentativeBatchNorm, parts: Parts, x: Tensor) -> Pair:
    """The folded layers for these parts and inputs like ``x``."""
    scaled = _scaled(source, parts.gain, parts.offset)
    return Pair(scaled, FoldedRepresentativeBatchNorm(norm, parts, x))


def difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.double(), expected.double()
    scale = float(expected.abs().max()) or 1.0
    return float((actual - expected).abs().max()) / scale


class Trial(TorchDispatchMode):
    """Watches a run: whose output each RBN layer reads, and who else reads it.

    Attributes:
        found: What was seen of every RBN layer that was reached, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, Found] = {}
        # Of every output of a source that still exists: the source, and what entered it.
        self._made: Any = WeakTensorKeyDictionary()
        self._inside = False
        self._handles = [
            handle for name, module in model.named_modules() for handle in self._watch(name, module)
        ]

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if not self._inside:
            self.read((args, kwargs))
        return func(*args, **(kwargs or {}))

    def read(self, tensors: object) -> None:
        """Count a use of every source's output among these."""
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, Tensor) and leaf in self._made:
                self._made[leaf][0].readers += 1

    def remove(self) -> None:
        """Take the hooks out of the model."""
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        bare = is_bare(module)
        if isinstance(module, _RepresentativeBatchNorm):
            if not bare:
                self.found[name] = stays("has hooks")
                return []
            leave = partial(self._leave, name)
            return [
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(leave, with_kwargs=True),
            ]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and bare:
            return [module.register_forward_hook(partial(self._record, Source(name, module)))]
        return []

    def _record(
        self, source: Source, module: nn.Module, args: tuple[Tensor, ...], output: object
    ) -> None:
        source.calls += 1
        if isinstance(output, Tensor) and args:
            self._made[output] = source, args[0]

    def _enter(self, norm: nn.Module, args: object, kwargs: object) -> None:
        self.read((args, kwargs))
        self._inside = True

    def _leave(
        self,
        name: str,
        norm: _RepresentativeBatchNorm,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: Tensor,
    ) -> None:
        x = input_of(args, kwargs)
        if name in self.found:
            self.found[name] = stays("is called several times")
        elif x not in self._made:
            self.found[name] = stays("follows no convolution or linear layer")
        else:
            source, entered = self._made[x]
            rest = {key: value for key, value in kwargs.items() if key != "input"}

            def run(pair: Pair) -> Tensor:
                return pair.norm(pair.source(entered), *args[1:], **rest)  # type: ignore[no-any-return]

            self.found[name] = _try(source, norm, x, run, output)
        self._inside = False


def _try(
    source: Source,
    norm: _RepresentativeBatchNorm,
    x: Tensor,
    run: Callable[[Pair], Tensor],
    expected: Tensor,
) -> Found:
    """Fold one layer, and compare on what entered the two."""
    if norm.running_mean is None:
        return stays("has no running statistics")
    if not {"weight", "bias"} <= source.module._parameters.keys():
        return stays(f"follows {source.name}, whose weight is not its own parameter")
    parts = split(norm)
    whole = parts.center is None and parts.gate is None
    if not whole and norm.calibration.statistic != "mean":
        outcome = stays(f"has the statistic {norm.calibration.statistic!r}").outcome
        return Found(outcome, source, Pair(source.module, norm))
    pair = pair_of(source.module, norm, parts, x)
    error = difference(run(pair), expected)
    if not error <= TOLERANCE[x.dtype]:
        return stays(f"follows {source.name}, and differs after folding", error)
    return Found(LayerFold(source.name, whole, error, None), source, pair)


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
