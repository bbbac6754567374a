"""RBN back to BatchNorm, on whole models, with the error that it causes."""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Parameter
from torch.utils._pytree import tree_leaves, tree_map

from rbnorm.definition import RESTRICTIONS, resolve
from rbnorm.kernels.phases import table_dtype
from rbnorm.layers.base import _RepresentativeBatchNorm, input_of, rbn_layers
from rbnorm.layers.classes import RepresentativeBatchNormAct2d
from rbnorm.layers.guard import forget
from rbnorm.layers.options import NAMES
from rbnorm.models.convert import counterparts
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
class _Static:
    """The BatchNorm nearest to an RBN layer: exact for an instance whose mean is the batch's."""

    weight: Tensor | None
    running_mean: Tensor | None
    exact: bool

    def __call__(self, layer: _RepresentativeBatchNorm, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            layer.running_var,
            self.weight,
            layer.bias,
            training=self.running_mean is None,
            eps=layer.eps,
        )


def _wide(vector: Tensor) -> Tensor:
    return vector.to(table_dtype(vector.dtype))


@torch.no_grad()
def _static(layer: _RepresentativeBatchNorm) -> _Static:
    """Fold ``R(w_b)`` into gamma, and undo ``E(z) = (1 + w_m) E(x)`` where that is possible."""
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
    return _Static(weight, mean, exact)


def _original(name: str, layer: _RepresentativeBatchNorm) -> type[_BatchNorm]:
    if isinstance(layer, RepresentativeBatchNormAct2d):
        try:
            import timm.layers  # noqa: F401, PLC0415
        except ImportError:
            raise ValueError(
                f"layer {name!r} needs timm's BatchNormAct2d to be reverted to; install timm"
            ) from None
    if isinstance(layer, LazyModuleMixin):
        raise ValueError(  # noqa: TRY004 - the layer's state is wrong, not its type
            f"layer {name!r} has no size yet; run the model on one batch first"
        )
    if any(hasattr(parameter, "placements") for parameter in layer.parameters(recurse=False)):
        raise ValueError(
            f"layer {name!r} is sharded; revert the model first, then shard it: its whole state is "
            "that of torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "full_state_dict=True"
        )
    if any(parameter.is_meta for parameter in layer.parameters(recurse=False)):
        raise ValueError(f"layer {name!r} is on the meta device; give it values first")
    refuse_replaced(name, layer)
    if layer.synchronised:
        if isinstance(layer, RepresentativeBatchNormAct2d):
            return sys.modules["timm.layers"].SyncBatchNormAct  # type: ignore[no-any-return]
        return nn.SyncBatchNorm
    alone = ((bn, rbn) for bn, rbn in counterparts().items() if bn is not nn.SyncBatchNorm)
    return next((bn for bn, rbn in alone if isinstance(layer, rbn)), nn.BatchNorm2d)


def _become_batchnorm(layer: _RepresentativeBatchNorm, kind: type[_BatchNorm]) -> None:
    for name in NAMES:
        del layer._parameters[name]
    del layer.__dict__["calibration"]
    group = layer.process_group
    for name in ("frozen_stats", "synchronised", "process_group", "preserved"):
        layer.__dict__.pop(name, None)
    layer.__class__ = kind  # type: ignore[assignment]
    if issubclass(kind, nn.SyncBatchNorm):
        layer.process_group = group


@torch.no_grad()
def _set_static(layer: _RepresentativeBatchNorm, static: _Static, shared: set[int]) -> None:
    if static.running_mean is not None and layer.running_mean is not None:
        layer.running_mean.copy_(static.running_mean)
    if layer.affine and static.weight is not None and layer.weight is not None:
        if id(layer.weight) in shared:  # another module needs the old values
            layer.weight = Parameter(static.weight, layer.weight.requires_grad)
        else:
            layer.weight.copy_(static.weight)
    elif static.weight is not None:
        layer._buffers.pop("weight", None)
        layer.register_parameter("weight", None)
        if not torch.allclose(static.weight, torch.ones_like(static.weight)):
            layer.affine = True
            layer.weight = Parameter(static.weight, requires_grad=False)
            layer.bias = Parameter(torch.zeros_like(static.weight), requires_grad=False)


class _Error:
    """A streaming relative root mean square error."""

    def __init__(self) -> None:
        self.difference = self.norm = 0.0
        self.measured = False

    def add(self, actual: Tensor, expected: Tensor) -> None:
        actual, expected = actual.cpu().double(), expected.cpu().double()
        self.difference += float((actual - expected).square().sum())
        self.norm += float(expected.square().sum())
        self.measured = True

    def value(self) -> float | None:
        return math.sqrt(self.difference / (self.norm or 1.0)) if self.measured else None


Plan = dict[str, tuple[_RepresentativeBatchNorm, type[_BatchNorm], _Static]]


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
    model: nn.Module, inputs: Tensor | tuple[object, ...], plan: Plan
) -> tuple[list[Tensor], dict[str, float | None]]:
    """The RBN model's outputs, and each layer's error on the inputs it meets there."""
    errors = {name: _Error() for name in plan}

    def hook(name: str, static: _Static) -> Callable[..., None]:
        def compare(
            layer: _RepresentativeBatchNorm,
            args: tuple[Tensor, ...],
            kwargs: dict[str, Tensor],
            _: Tensor,
        ) -> None:
            x = input_of(args, kwargs)
            plan[name][1]._check_input_dim(layer, x)
            errors[name].add(static(layer, x), _RepresentativeBatchNorm.forward(layer, x))

        return compare

    handles = [
        layer.register_forward_hook(hook(name, static), with_kwargs=True)
        for name, (layer, _, static) in plan.items()
    ]
    try:
        outputs = _evaluate(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, {name: error.value() for name, error in errors.items()}


def _needed_as_it_is(model: nn.Module, plan: Plan) -> set[int]:
    """The weights that another module uses as they are, or that would become different ones."""
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    becomes: dict[int, list[Tensor]] = {}
    for layer, _, static in plan.values():
        if layer.affine and static.weight is not None:
            becomes.setdefault(id(layer.weight), []).append(static.weight)
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
    plan: Plan = {
        name: (layer, _original(name, layer), _static(layer)) for name, layer in rbn_layers(model)
    }
    errors: dict[str, float | None]
    if inputs is None:
        errors = {name: 0.0 if static.exact else None for name, (_, _, static) in plan.items()}
        expected = None
        unknown = sum(error is None for error in errors.values())
        if unknown:
            warnings.warn(
                f"revert_batchnorm drops the trained calibration of {unknown} layers without "
                "measuring the error; pass inputs= to measure it",
                stacklevel=2,
            )
    else:
        expected, errors = _measure_layers(model, inputs, plan)
    frozen = [name for name, (layer, _, _) in plan.items() if layer.frozen_stats]
    if frozen:
        warnings.warn(
            f"the statistics of {len(frozen)} layers were frozen, the first {frozen[0]!r}; "
            "BatchNorm has no such option, and in training mode it updates them: put these layers "
            "into evaluation mode after each model.train()",
            stacklevel=2,
        )
    shared = _needed_as_it_is(model, plan)
    forget(model)
    for layer, kind, static in plan.values():
        _set_static(layer, static, shared)
        _become_batchnorm(layer, kind)
    if expected is None or inputs is None:
        output = None if any(error is None for error in errors.values()) else 0.0
        return RevertReport(model, errors, output)
    total = _Error()
    for after, before in zip(_evaluate(model, inputs), expected, strict=True):
        total.add(after, before)
    return RevertReport(model, errors, total.value())
