"""RBN back to BatchNorm, on whole models, with the error that it causes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import Parameter
from torch.utils._pytree import tree_leaves, tree_map

from rbnorm.diagnosis.passes import run, unchanged
from rbnorm.kernels.phases import table_dtype
from rbnorm.layers.base import GAMMA, _RepresentativeBatchNorm, rbn_layers
from rbnorm.layers.classes import RepresentativeBatchNormAct2d
from rbnorm.layers.options import NAMES
from rbnorm.models.convert import COUNTERPARTS
from rbnorm.models.intact import forget
from rbnorm.models.originals import refuse_replaced, refuse_without_values, uses
from rbnorm.models.report import Report, number, table

__all__ = ["RevertReport", "revert_batchnorm"]

Inputs = Tensor | tuple[object, ...]
Squares = tuple[float, float]


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


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors that a model returns for copies of the inputs, without gradients."""
    inputs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    with torch.no_grad():
        found = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


class _Step:
    """A layer and the BatchNorm nearest to it: exact for an instance whose mean is the batch's."""

    @torch.no_grad()
    def __init__(self, name: str, layer: _RepresentativeBatchNorm) -> None:
        """Fold ``R(w_b)`` into gamma, and undo ``E(z) = (1 + w_m) E(x)`` where possible."""
        self.layer, self.kind = layer, _original(name, layer)
        self.weight: Tensor | None = layer.weight
        self.running_mean: Tensor | None = layer.running_mean
        if layer.scale_bias is not None:
            gate = layer.calibration.restriction(_wide(layer.scale_bias))
            weight = gate if layer.weight is None else _wide(layer.weight) * gate
            self.weight = weight.to(layer.scale_bias.dtype)
        if layer.center_weight is not None and self.running_mean is not None:
            mean, gain = _wide(self.running_mean), 1 + _wide(layer.center_weight)
            # Near w_m = -1 the running mean of z says nothing of that of x; it is kept as it is.
            known = (gain.abs() > 1e-3) & (layer.calibration.statistic == "mean")
            self.running_mean = torch.where(known, mean / gain, mean).to(self.running_mean.dtype)
        dropped = (layer.center_weight, layer.scale_weight)
        self.exact = not any(vector.any() for vector in dropped if vector is not None)

    def error(self, x: Tensor) -> Squares:
        """What dropping the rest of the calibration does to the output."""
        layer, mean = self.layer, self.running_mean
        self.kind._check_input_dim(layer, x)
        actual = F.batch_norm(
            x, mean, layer.running_var, self.weight, layer.bias, mean is None, eps=layer.eps
        )
        return _squares(actual, _RepresentativeBatchNorm.forward(layer, x))

    @torch.no_grad()
    def take(self, places: Mapping[int, int]) -> None:
        """Make the layer that BatchNorm; a weight with several ``places`` stays as it is there."""
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
        elif weight is not None and weight is not layer.weight:
            if places[id(layer.weight)] > 1:
                layer.weight = Parameter(weight, layer.weight.requires_grad)
            else:
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


def _wide(vector: Tensor) -> Tensor:
    return vector.to(table_dtype(vector.dtype))


def _original(name: str, layer: _RepresentativeBatchNorm) -> type[_BatchNorm]:
    """The BatchNorm class of a layer that can become one."""
    refuse_without_values(name, layer)
    if any(hasattr(parameter, "placements") for parameter in layer.parameters(recurse=False)):
        raise ValueError(
            f"layer {name!r} is sharded; revert the model first, then shard it: its whole state is "
            "that of torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "full_state_dict=True"
        )
    refuse_replaced(name, layer)
    if isinstance(layer, RepresentativeBatchNormAct2d):
        try:
            timm = import_module("timm.layers")
        except ImportError as error:
            raise ValueError(
                f"layer {name!r} needs timm's BatchNormAct2d to be reverted to; install timm"
            ) from error
        return timm.SyncBatchNormAct if layer.synchronised else timm.BatchNormAct2d  # type: ignore[no-any-return]
    if layer.synchronised:
        return nn.SyncBatchNorm
    return next((kind for kind in COUNTERPARTS if isinstance(layer, kind)), nn.BatchNorm2d)


def _squares(actual: Tensor, expected: Tensor) -> Squares:
    """The sums of squares of the difference and of what is expected."""
    actual, expected = actual.cpu().double(), expected.cpu().double()
    return float((actual - expected).square().sum()), float(expected.square().sum())


def _relative(squares: Iterable[Squares]) -> float | None:
    """The relative root mean square error; None where nothing was measured."""
    parts = list(squares)
    norm = sum(whole for _, whole in parts) or 1.0
    return math.sqrt(sum(difference for difference, _ in parts) / norm) if parts else None


def revert_batchnorm(model: nn.Module, inputs: Inputs | None = None) -> RevertReport:
    r"""Turn every RBN layer of a model back into BatchNorm, in place, and measure what that costs.

    The static part of the calibration is kept: :math:`\gamma R(w_b)` becomes the weight, and
    :math:`E(z) / (1 + w_m)`, the mean of :math:`x`, the running mean; for another statistic than
    the mean, and for :math:`w_m` within 0.001 of -1, the running mean stays as it is. What depends
    on the instance is dropped, so the result is exact where :math:`w_m = w_v = 0`. A layer without
    :math:`\gamma` gets a frozen ``weight`` and ``bias`` unless :math:`R(w_b)` was compensated by a
    constant. A synchronised layer becomes a SyncBatchNorm of its process group (timm's, where it
    was timm's layer); one made from a SyncBatchNorm that no longer synchronises, a BatchNorm2d.
    A weight that several modules share stays as it is in the others, and the layer gets its own.

    Args:
        model: A model with RBN layers, or one such layer.
        inputs: A batch, or a tuple of arguments, on which the model is run in evaluation mode
            before and after to measure the error; training flags are left as they were.

    Returns:
        A :class:`RevertReport`.

    Raises:
        ValueError: The model has no RBN layer, or one without values yet (lazy, meta device), or
            one that is sharded, pruned or parametrised, or needs timm while timm is not installed.
            The model is then unchanged, as it is when running it raises.

    Warns:
        UserWarning: A trained calibration is dropped and ``inputs`` was not given; or statistics
            were frozen, for which BatchNorm has no option.
    """
    plan = {name: _Step(name, layer) for name, layer in rbn_layers(model)}
    errors = {name: 0.0 if step.exact else None for name, step in plan.items()}
    before: list[Tensor] = []
    if inputs is not None:
        errors = _measure(model, inputs, plan, before)
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
    places = uses(model)
    forget(model)
    for step in plan.values():
        step.take(places)
    if inputs is None:
        return RevertReport(model, errors, None if None in errors.values() else 0.0)
    with unchanged(model):
        after = outputs(model.eval(), inputs)
    return RevertReport(model, errors, _relative(map(_squares, after, before)))


def _measure(
    model: nn.Module, inputs: Inputs, plan: Mapping[str, _Step], before: list[Tensor]
) -> dict[str, float | None]:
    """Each layer's error on what it meets in the RBN model, whose outputs go to ``before``."""
    found: dict[str, list[Squares]] = {name: [] for name in plan}

    def compare(name: str, layer: nn.Module, x: Tensor) -> None:
        found[name].append(plan[name].error(x))

    listeners = {name: partial(compare, name) for name in plan}
    with unchanged(model):
        run(model.eval(), [inputs], outputs, listeners, lambda _, output: before.extend(output))
    return {name: _relative(squares) for name, squares in found.items()}
