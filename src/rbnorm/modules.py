"""The layers: torch's BatchNorm classes with the calibration parameters of RBN."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import Parameter

from rbnorm.batch import Group
from rbnorm.calibration import NAMES, Calibration
from rbnorm.deferred import with_initial_value
from rbnorm.definition import Restriction, Statistic
from rbnorm.functional import representative_batch_norm
from rbnorm.integrity import Guarded
from rbnorm.kernels.phases import table_dtype

__all__ = [
    "RepresentativeBatchNorm1d",
    "RepresentativeBatchNorm2d",
    "RepresentativeBatchNorm3d",
    "RepresentativeBatchNormAct2d",
]


def bias_option(bias: bool) -> dict[str, bool]:
    """The argument for torch's BatchNorm, whose older releases do not have it."""
    return {} if bias else {"bias": False}


def _is_recomputed() -> bool:
    """Whether this forward pass belongs to a backward pass, as under activation checkpointing.

    Its batch has been counted once, when it came by first.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class _RepresentativeBatchNorm(Guarded, _BatchNorm):
    """Everything of RBN but the rank of its input; see :class:`RepresentativeBatchNorm2d`."""

    center_weight: Parameter | None
    scale_weight: Parameter | None
    scale_bias: Parameter | None
    calibration: Calibration
    #: Normalise by the running statistics in training too, and keep them; see `rbnorm.freeze`.
    frozen_stats: bool = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        center: bool = True,
        scale: bool = True,
        statistic: str | Statistic = "mean",
        restrict: str | Restriction = "sigmoid",
        center_weight_init: float = 0.0,
        scale_weight_init: float = 0.0,
        scale_bias_init: float = 1.0,
    ) -> None:
        calibration = Calibration(
            center,
            scale,
            statistic,
            restrict,
            center_weight_init,
            scale_weight_init,
            scale_bias_init,
        )
        calibration.check()
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps must be a non-negative number, got {eps}")
        if momentum is not None and not math.isfinite(momentum):
            raise ValueError(f"momentum must be a finite number or None, got {momentum}")
        options = bias_option(bias)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **options
        )
        self.calibrate(
            calibration, lambda: Parameter(torch.empty(num_features, device=device, dtype=dtype))
        )
        self.reset_parameters()

    def calibrate(self, calibration: Calibration, new: Callable[[], Parameter]) -> None:
        """Give a layer that is a BatchNorm so far its options and, made by ``new``, parameters."""
        self.calibration = calibration
        initial = calibration.initial()
        for name in NAMES:
            wanted = name in initial
            self.register_parameter(
                name, with_initial_value(new(), initial[name]) if wanted else None
            )

    def reset_parameters(self) -> None:
        """Reset as BatchNorm does, and the calibration parameters to their initial values."""
        super().reset_parameters()
        if "calibration" in self.__dict__:  # torch resets once before the parameters exist
            self.reset_calibration()

    def reset_running_stats(self) -> None:
        """Reset as BatchNorm does, unless the statistics are frozen."""
        if not self.frozen_stats:
            super().reset_running_stats()

    def reset_calibration(self) -> None:
        """Set the calibration parameters to their initial values."""
        for name, value in self.calibration.initial().items():
            nn.init.constant_(getattr(self, name), value)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise and calibrate; see the class."""
        if isinstance(input, fx.Proxy):
            return self._as_node(input)
        return self._normalise(input)

    def _as_node(self, *inputs: Any) -> Any:
        """One node of the graph that ``torch.fx`` traces symbolically, like torch's own layers."""
        tracer: Any = inputs[0].tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), inputs, {})

    def _normalise(self, input: Tensor, **tail: Any) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        from_batch = self.training and not self.frozen_stats
        track = from_batch and self.track_running_stats and not _is_recomputed()
        mean, var = self._vector("running_mean"), self._vector("running_var")
        used = track or not from_batch
        output = representative_batch_norm(
            input,
            mean if used else None,
            var if used else None,
            self._vector("weight"),
            self._vector("bias"),
            from_batch or (mean is None and var is None),
            self._factor() if track else 0.0,
            self.eps,
            center_weight=self._vector("center_weight"),
            scale_weight=self._vector("scale_weight"),
            scale_bias=self._vector("scale_bias"),
            statistic=self.calibration.statistic,
            restrict=self.calibration.restrict,
            group=self._group() if from_batch else None,
            **tail,
        )
        batches = self._vector("num_batches_tracked") if track else None
        if batches is not None:
            batches.add_(1)
        return output

    def _group(self) -> Group | None:
        """The processes whose batches are one."""
        return None

    def _vector(self, name: str) -> Tensor | None:
        """``getattr(self, name)``, without the long way on which torch looks for parameters."""
        for own in (self._parameters, self._buffers):
            if name in own:
                return own[name]
        return getattr(self, name)  # type: ignore[no-any-return] # pruned, or parametrised

    def _factor(self) -> float | Tensor:
        """The share of this batch in the running statistics."""
        if self.momentum is not None:
            return self.momentum
        mean, batches = self._vector("running_mean"), self._vector("num_batches_tracked")
        if batches is None or mean is None:
            return 0.0
        # A tensor, so that no device waits for the host; float64 buffers get a float64 factor.
        dtype = table_dtype(mean.dtype)
        return (batches + 1).to(dtype).reciprocal()

    def extra_repr(self) -> str:
        """BatchNorm's line, then every calibration option that differs from its default."""
        options = zip(Calibration._fields, self.calibration, Calibration(), strict=True)
        changed = [f", {name}={value}" for name, value, default in options if value != default]
        changed += [", frozen_stats=True"] * self.frozen_stats
        return "".join([super().extra_repr(), *changed])  # type: ignore[no-untyped-call]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._flatten_official(state_dict, prefix)
        self._complete_batchnorm(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _flatten_official(self, state_dict: dict[str, Any], prefix: str) -> None:
        for name in ("weight", "bias", *NAMES):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == value.numel():
                state_dict[prefix + name] = value.reshape(-1)

    def _complete_batchnorm(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Add the initial calibration to a BatchNorm's checkpoint, which has nothing of it."""
        own = {"weight": self._parameters.get("weight"), "running_mean": self.running_mean}
        wanted = [name for name, tensor in own.items() if tensor is not None]
        known = [state_dict[prefix + name] for name in wanted if prefix + name in state_dict]
        if len(known) < len(wanted) or any(prefix + name in state_dict for name in NAMES):
            return
        for name, value in self.calibration.initial().items():
            parameter = getattr(self, name)
            like = known[0] if known else parameter
            state_dict[prefix + name] = torch.full(
                like.shape, value, dtype=parameter.dtype, device=like.device
            )
        if self._buffers.get("weight") is not None:  # the constant of `convert_batchnorm`
            state_dict.setdefault(prefix + "weight", self.weight)


def rbn_layers(model: nn.Module) -> list[tuple[str, _RepresentativeBatchNorm]]:
    """The RBN layers of a model with their names; an error if there is none."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, _RepresentativeBatchNorm)]
    if not found:
        raise ValueError(f"model must have an RBN layer, got {type(model).__name__} without one")
    return found


class RepresentativeBatchNorm1d(_RepresentativeBatchNorm, nn.BatchNorm1d):
    """RBN over (N, C) or (N, C, L) inputs; all else as :class:`RepresentativeBatchNorm2d`."""


class RepresentativeBatchNorm2d(_RepresentativeBatchNorm, nn.BatchNorm2d):
    r"""Representative Batch Normalization over (N, C, H, W) inputs.

    .. math::

        z = x + w_m K(x), \quad o = \frac{z - E}{\sqrt{V + \epsilon}}, \quad
        y = \gamma\, R(w_v K(o) + w_b)\, o + \beta

    where :math:`K` is a statistic of one instance's channel (its mean over all positions),
    :math:`R` a restricting function (sigmoid), and :math:`E, V` the mean and variance of :math:`z`
    per channel: of the batch in training, the running ones in evaluation.

    Everything that BatchNorm defines is as in :class:`torch.nn.BatchNorm2d` and its siblings: the
    positional arguments, ``training`` and ``track_running_stats``, ``momentum=None`` for a
    cumulative average, the buffers, and the errors. The parameters ``weight, bias, center_weight,
    scale_weight, scale_bias`` are all of shape (C,), so weight-decay filters by ``ndim`` treat
    them as BatchNorm's. With :math:`w_m = w_v = 0` and :math:`R(w_b) = 1` the layer is BatchNorm;
    fresh from the constructor it is BatchNorm times :math:`R(1)`, 0.731 for the sigmoid.

    ``load_state_dict(strict=True)`` also takes, without a warning, a plain BatchNorm checkpoint
    (the calibration parameters take their initial values when the checkpoint has none of them)
    and a checkpoint of the official implementation (parameters of shape (1, C, 1, 1)).

    A forward pass that runs inside a backward pass, as activation checkpointing makes one, leaves
    the running statistics alone: its batch has been counted. :func:`rbnorm.freeze` keeps them, and
    uses them, in training too.

    Args:
        num_features: C, the size of axis 1 of the input.
        eps: :math:`\epsilon`, not negative.
        momentum: Factor of the running update, or None for a cumulative average.
        affine: Learn :math:`\gamma` and :math:`\beta`; the calibration is learnt either way.
        track_running_stats: Keep running statistics, and use them in evaluation.
        device: Where the parameters and buffers are.
        dtype: Of the parameters and buffers; statistics are computed in float32 for half inputs.
        bias: Learn :math:`\beta`; False needs a torch whose BatchNorm has this argument.
        center: Have the centring calibration; its parameter is absent otherwise.
        scale: Have the scaling calibration; its parameters are absent otherwise.
        statistic: :math:`K`, see :func:`rbnorm.functional.representative_batch_norm`.
        restrict: :math:`R`, see there.
        center_weight_init: Initial :math:`w_m`.
        scale_weight_init: Initial :math:`w_v`.
        scale_bias_init: Initial :math:`w_b`.

    Shape:
        Input and output: (N, C) or (N, C, L) for 1d, (N, C, H, W) for 2d, (N, C, D, H, W) for 3d,
        in float16, bfloat16, float32 or float64; the output has the input's dtype.

    Raises:
        ValueError: An input of the wrong rank or channel count, one value per channel in training,
            a negative ``eps``, a ``momentum`` that is not finite, an unknown statistic or
            restriction. A failing call changes no state.
        TypeError: An input that is not real floating point.

    Source: Gao et al., *Representative Batch Normalization with Feature Calibration*, CVPR 2021.
    """


class RepresentativeBatchNorm3d(_RepresentativeBatchNorm, nn.BatchNorm3d):
    """RBN over (N, C, D, H, W) inputs; all else as :class:`RepresentativeBatchNorm2d`."""


# The activations that are part of the op.
_ACTIVATIONS: dict[type[nn.Module], str | None] = {
    nn.Identity: None,
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}


def _is_bare(module: nn.Module, kinds: Container[type[nn.Module]]) -> bool:
    """Whether a module is exactly of one of these kinds, and nobody listens to its calls."""
    return type(module) in kinds and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _takes_inplace(make: Callable[..., nn.Module]) -> bool:
    return "inplace" in inspect.signature(make).parameters


class RepresentativeBatchNormAct2d(RepresentativeBatchNorm2d):
    r"""RBN followed by drop and activation, ``act(drop(RBN(x)))``: timm's norm-act slot.

    Called with a ``residual`` of the input's shape and dtype it is
    ``act(drop(RBN(x)) + residual)``.
    ReLU, LeakyReLU, SiLU and Hardswish, and the residual, are computed in RBN's own second sweep;
    nothing more is kept for backward than the residual.

    Args:
        num_features: As in :class:`RepresentativeBatchNorm2d`, like all that are not listed here.
        eps: See there.
        momentum: See there.
        affine: See there.
        track_running_stats: See there.
        apply_act: Apply the activation at all.
        act_layer: Makes the activation; a class, a function, or None for no activation.
        act_kwargs: More arguments for ``act_layer``.
        inplace: Pass ``inplace=True`` to ``act_layer`` if it has that argument.
        drop_layer: Makes the drop layer; None for none.
        device: See there.
        dtype: See there.
        **calibration: The keyword-only arguments of :class:`RepresentativeBatchNorm2d`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        apply_act: bool = True,
        act_layer: Callable[..., nn.Module] | None = nn.ReLU,
        act_kwargs: dict[str, Any] | None = None,
        inplace: bool = True,
        drop_layer: Callable[[], nn.Module] | None = None,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        **calibration: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **calibration
        )
        self.drop = nn.Identity() if drop_layer is None else drop_layer()
        self.act: nn.Module = nn.Identity()
        if apply_act and act_layer is not None:
            options = {"inplace": True} if inplace and _takes_inplace(act_layer) else {}
            self.act = act_layer(**options, **(act_kwargs or {}))

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise, calibrate, drop, add the residual, activate; in one op where that is known."""
        if isinstance(input, fx.Proxy):
            return self._as_node(input, *([] if residual is None else [residual]))
        if _is_bare(self.drop, (nn.Identity,)) and _is_bare(self.act, _ACTIVATIONS):
            return self._normalise(
                input,
                residual=residual,
                activation=_ACTIVATIONS[type(self.act)],
                negative_slope=getattr(self.act, "negative_slope", 0.0),
            )
        output: Tensor = self.drop(self._normalise(input))
        output = output if residual is None else output + residual
        return self.act(output)  # type: ignore[no-any-return]
