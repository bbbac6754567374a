"""RBN back to BatchNorm, on whole models, with the error that it causes."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Parameter
from torch.utils._pytree import tree_leaves, tree_map

from rbnorm.definition import RESTRICTIONS, resolve
from rbnorm.kernels.phases import table_dtype
from rbnorm.layers.base import GAMMA, _RepresentativeBatchNorm, input_of, rbn_layers
from rbnorm.layers.classes import RepresentativeBatchNormAct2d
from rbnorm.layers.options import NAMES
from rbnorm.models.intact import forget
from rbnorm.models.originals import refuse_replaced
from rbnorm.models.report import Report, number, table

__all__ = ["RevertReport", "revert_batchnorm"]


@dataclass(frozen=True, repr=False)
class RevertReport(Report):
    """What dropping the calibration did to a model.

    Errors are relative: the root mean square of the difference over that of the RBN output.

    Attributes:
        model: The reverted model, the same object as before.
        layers: Per reverted layer, the error of its own output on the inputs it had in the RBN
            model; None where it was not measured, as in a layer that was not reached. Without
            ``inputs``, 0 where the calibration was untrained.
        output: The error of the model's output, or None where it was not measured.
    """

    model: nn.Module
    layers: dict[str, float | None]
    output: float | None

    def __str__(self) -> str:
        known = sorted(self.layers.items(), key=lambda item: -(item[1] or 0.0))
        rows = [(name or type(self.model).__name__, number(e, ".2%")) for name, e in known]
        said = f"{len(rows)} layers are BatchNorm again; the error of the model's output is "
        return f"{said}{number(self.output, '.2%')}\n{table(('layer', 'error'), rows)}"


@dataclass(frozen=True)
class _Step:
    """A layer and the BatchNorm nearest to it: exact for an instance whose mean is the batch's."""

    layer: _RepresentativeBatchNorm
    kind: type[_BatchNorm]
    weight: Tensor | None
    running_mean: Tensor | None
    exact: bool

    def squares(self, x: Tensor) -> tuple[float, float]:
        """Those of the difference that dropping the rest makes to the output, and of the output."""
        layer, mean = self.layer, self.running_mean
        self.kind._check_input_dim(layer, x)
        actual = F.batch_norm(
            x, mean, layer.running_var, self.weight, layer.bias, mean is None, eps=layer.eps
        )
        return _squares(actual, _RepresentativeBatchNorm.forward(layer, x))

    @torch.no_grad()
    def take(self, shared: Collection[int]) -> None:
        """Make the layer that BatchNorm; ``shared`` weights are needed as they are."""
        layer, weight = self.layer, self.weight
        if self.running_mean is not None:
            layer.running_mean.copy_(self.running_mean)
        if weight is not None and layer._parameters.get("weight") is None:
            layer._buffers.pop("weight", None)
            layer.register_parameter("weight", None)
            if not torch.allclose(weight, torch.ones_like(weight)):
                layer.affine = True
                layer.weight = Parameter(weight, requires_grad=False)
                layer.bias = Parameter(torch.zeros_like(weight), requires_grad=False)
        elif weight is not None and id(layer.weight) in shared:
            layer.weight = Parameter(weight, layer.weight.requires_grad)
        elif weight is not None:
            layer.weight.copy_(weight)
        for name in NAMES:
            del layer._parameters[name]
        group = layer.process_group
        own = ("calibration", "frozen_stats", "synchronised", "process_group", "preserved", GAMMA)
        for name in own:
            vars(layer).pop(name, None)
        layer.__class__ = self.kind  # type: ignore[assignment]
        if issubclass(self.kind, nn.SyncBatchNorm):
            layer.process_group = group


@torch.no_grad()
def _step(name: str, layer: _RepresentativeBatchNorm) -> _Step:
    """Fold ``R(w_b)`` into gamma, and undo ``E(z) = (1 + w_m) E(x)`` where that is possible."""
    kind = _original(name, layer)
    weight: Tensor | None = layer.weight
    mean = layer.running_mean
    if layer.scale_bias is not None:
        restrict = resolve("restrict", layer.calibration.restrict, RESTRICTIONS)
        gate = restrict(_wide(layer.scale_bias))
        weight = (gate if weight is None else _wide(weight) * gate).to(layer.scale_bias.dtype)
    if layer.center_weight is not None and mean is not None:
        gain = 1 + _wide(layer.center_weight)
        # Near w_m = -1 the running mean of z says nothing of that of x; it is kept as it is.
        known = (gain.abs() > 1e-3) & (layer.calibration.statistic == "mean")
        mean = torch.where(known, mean / gain, _wide(mean)).to(mean.dtype)
    dropped = (layer.center_weight, layer.scale_weight)
    exact = not any(vector.any() for vector in dropped if vector is not None)
    return _Step(layer, kind, weight, mean, exact)


def _wide(vector: Tensor) -> Tensor:
    return vector.to(table_dtype(vector.dtype))


def _original(name: str, layer: _RepresentativeBatchNorm) -> type[_BatchNorm]:
    """The BatchNorm class of a layer that can become one."""
    norm_act = isinstance(layer, RepresentativeBatchNormAct2d)
    parameters = list(layer.parameters(recurse=False))
    if norm_act and not find_spec("timm"):
        raise ValueError(
            f"layer {name!r} needs timm's BatchNormAct2d to be reverted to; install timm"
        )
    if isinstance(layer, LazyModuleMixin):
        raise ValueError(  # noqa: TRY004 - the layer's state is wrong, not its type
            f"layer {name!r} has no size yet; run the model on one batch first"
        )
    if any(hasattr(parameter, "placements") for parameter in parameters):
        raise ValueError(
            f"layer {name!r} is sharded; revert the model first, then shard it: its whole state is "
            "that of torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "full_state_dict=True"
        )
    if any(parameter.is_meta for parameter in parameters):
        raise ValueError(f"layer {name!r} is on the meta device; give it values first")
    refuse_replaced(name, layer)
    if norm_act:
        timm = import_module("timm.layers")
        return timm.SyncBatchNormAct if layer.synchronised else timm.BatchNormAct2d  # type: ignore[no-any-return]
    if layer.synchronised:
        return nn.SyncBatchNorm
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return next((kind for kind in kinds if isinstance(layer, kind)), nn.BatchNorm2d)


Squares = tuple[float, float]


def _squares(actual: Tensor, expected: Tensor) -> Squares:
    actual, expected = actual.cpu().double(), expected.cpu().double()
    return float((actual - expected).square().sum()), float(expected.square().sum())


def _relative(squares: Iterable[Squares]) -> float | None:
    """The relative root mean square error; None where nothing was measured."""
    parts = list(squares)
    norm = sum(whole for _, whole in parts) or 1.0
    return math.sqrt(sum(difference for difference, _ in parts) / norm) if parts else None


def _evaluate(model: nn.Module, inputs: Tensor | tuple[object, ...]) -> list[Tensor]:
    modes = [(module, module.training) for module in model.modules()]
    # A model may write to its inputs; both runs must see the same ones.
    inputs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    model.eval()
    try:
        with torch.no_grad():
            output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    finally:
        for module, mode in modes:
            module.training = mode
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _measure_layers(
    model: nn.Module, inputs: Tensor | tuple[object, ...], plan: dict[str, _Step]
) -> tuple[list[Tensor], dict[str, float | None]]:
    """The RBN model's outputs, and each layer's error on the inputs it meets there."""
    errors: dict[str, list[Squares]] = {name: [] for name in plan}

    def compare(name: str, layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        errors[name].append(plan[name].squares(input_of(args, kwargs)))

    handles = [
        step.layer.register_forward_hook(partial(compare, name), with_kwargs=True)
        for name, step in plan.items()
    ]
    try:
        outputs = _evaluate(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, {name: _relative(squares) for name, squares in errors.items()}


def _needed_as_it_is(model: nn.Module, plan: Iterable[_Step]) -> set[int]:
    """The weights that another module uses as they are, or that would become different ones."""
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    becomes: dict[int, list[Tensor]] = {}
    for step in plan:
        if step.layer.affine and step.weight is not None:
            becomes.setdefault(id(step.layer.weight), []).append(step.weight)
    return {
        weight
        for weight, values in becomes.items()
        if len(values) < uses[weight] or any(not torch.equal(values[0], v) for v in values)
    }


def revert_batchnorm(
    model: nn.Module, inputs: Tensor | tuple[object, ...] | None = None
) -> RevertReport:
    r"""Turn every RBN layer of a model back into BatchNorm, in place, and measure what that costs.

    The static part of the calibration is kept: :math:`\gamma R(w_b)` becomes the weight, and
    :math:`E(z) / (1 + w_m)`, the mean of :math:`x`, the running mean; for another statistic than
    the mean, and for :math:`w_m` within 0.001 of -1, the running mean stays as it is. What depends
    on the instance is dropped, so the result is exact where :math:`w_m = w_v = 0`. A layer without
    :math:`\gamma` gets a frozen ``weight`` and ``bias`` unless :math:`R(w_b)` was compensated by a
    constant. A synchronised layer becomes a SyncBatchNorm of its process group (timm's, where it
    was timm's layer); one made from a SyncBatchNorm that no longer synchronises, a BatchNorm2d.
    Tied weights stay tied where they become equal.

    Args:
        model: A model with RBN layers, or one such layer.
        inputs: A batch, or a tuple of arguments, on which the model is run in evaluation mode
            before and after to measure the error; training flags are left as they were.

    Returns:
        A :class:`RevertReport`.

    Raises:
        ValueError: The model has no RBN layer, or one without values yet (lazy, meta device), or
            one that is sharded, or
            one that needs timm while timm is not installed, or one that is pruned or parametrised.
            The model is then unchanged, as it is when running it raises.

    Warns:
        UserWarning: A trained calibration is dropped and ``inputs`` was not given; or statistics
            were frozen, for which BatchNorm has no option.
    """
    plan = {name: _step(name, layer) for name, layer in rbn_layers(model)}
    before = None
    errors = {name: 0.0 if step.exact else None for name, step in plan.items()}
    if inputs is not None:
        before, errors = _measure_layers(model, inputs, plan)
    elif None in errors.values():
        unknown = list(errors.values()).count(None)
        warnings.warn(
            f"revert_batchnorm drops the trained calibration of {unknown} layers without "
            "measuring the error; pass inputs= to measure it",
            stacklevel=2,
        )
    frozen = [name for name, step in plan.items() if step.layer.frozen_stats]
    if frozen:
        warnings.warn(
            f"the statistics of {len(frozen)} layers were frozen, the first {frozen[0]!r}; "
            "BatchNorm has no such option, and in training mode it updates them: put these layers "
            "into evaluation mode after each model.train()",
            stacklevel=2,
        )
    shared = _needed_as_it_is(model, plan.values())
    forget(model)
    for step in plan.values():
        step.take(shared)
    if before is None or inputs is None:
        return RevertReport(model, errors, None if None in errors.values() else 0.0)
    return RevertReport(model, errors, _relative(map(_squares, _evaluate(model, inputs), before)))
