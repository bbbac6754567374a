"""The layers: torch's BatchNorm classes with the calibration parameters of RBN."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, fx, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.parameter import Parameter

from rbnorm.batch import Group
from rbnorm.calibration import NAMES, Calibration
from rbnorm.deferred import with_initial_value
from rbnorm.definition import Restriction, Statistic
from rbnorm.elementwise import activation_of
from rbnorm.functional import representative_batch_norm
from rbnorm.integrity import Guarded
from rbnorm.kernels.phases import table_dtype
from rbnorm.names import ActivationName, LayerOptions, RestrictionName, StatisticName

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "RepresentativeBatchNorm1d",
    "RepresentativeBatchNorm2d",
    "RepresentativeBatchNorm3d",
    "RepresentativeBatchNormAct2d",
]


_VECTORS = ("weight", "bias", *NAMES)
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_FLAGS = ("frozen_stats", "synchronised")


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
    #: Share the batch with the processes of `process_group` (None: all); see `rbnorm.convert_sync`.
    synchronised: bool = False
    process_group: dist.ProcessGroup | None = None

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
        statistic: StatisticName | Statistic = "mean",
        restrict: RestrictionName | Restriction = "sigmoid",
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

    def _as_node(self, *inputs: fx.Proxy) -> Tensor:
        """One node of the graph that ``torch.fx`` traces symbolically, like torch's own layers."""
        tracer = cast("fx.Tracer", inputs[0].tracer)
        node = tracer.create_proxy("call_module", tracer.path_of_module(self), inputs, {})
        return cast("Tensor", node)

    def _normalise(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        activation: ActivationName | None = None,
        negative_slope: float = 0.0,
    ) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        weight, bias, w_m, w_v, w_b, mean, var, batches = self._tensors()
        from_batch = self.training and not self.frozen_stats
        track = from_batch and self.track_running_stats and not _is_recomputed()
        used = track or not from_batch
        output = representative_batch_norm(
            input,
            mean if used else None,
            var if used else None,
            weight,
            bias,
            from_batch or (mean is None and var is None),
            self._factor(mean, batches) if track else 0.0,
            self.eps,
            center_weight=w_m,
            scale_weight=w_v,
            scale_bias=w_b,
            statistic=self.calibration.statistic,
            restrict=self.calibration.restrict,
            residual=residual,
            activation=activation,
            negative_slope=negative_slope,
            group=Group.of(self.process_group) if self.synchronised and from_batch else None,
        )
        if track and batches is not None:
            batches.add_(1)
        return output

    def _tensors(self) -> tuple[Tensor | None, ...]:
        """The vectors, the running statistics and the count of batches."""
        p, b = self._parameters, self._buffers
        try:  # past the long way on which torch looks for parameters
            return (
                p["weight"],
                p["bias"],
                p["center_weight"],
                p["scale_weight"],
                p["scale_bias"],
                b["running_mean"],
                b["running_var"],
                b["num_batches_tracked"],
            )
        except KeyError:  # pruned, parametrised, or put there by somebody
            return tuple(getattr(self, name) for name in (*_VECTORS, *_BUFFERS))

    def _factor(self, mean: Tensor | None, batches: Tensor | None) -> float | Tensor:
        """The share of this batch in the running statistics."""
        if self.momentum is not None:
            return self.momentum
        if batches is None or mean is None:
            return 0.0
        # A tensor, so that no device waits for the host; float64 buffers get a float64 factor.
        return (batches + 1).to(table_dtype(mean.dtype)).reciprocal()

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse ``torch.jit.script``, which asks every module."""
        raise NotImplementedError(
            f"torch.jit.script cannot compile {type(self).__name__}; "
            "use torch.jit.trace or torch.export"
        )

    def extra_repr(self) -> str:
        """BatchNorm's line, then every calibration option that differs from its default."""
        options = zip(Calibration._fields, self.calibration, Calibration(), strict=True)
        changed = [f", {name}={value}" for name, value, default in options if value != default]
        changed += [f", {name}=True" for name in _FLAGS if getattr(self, name)]
        return "".join([super().extra_repr(), *changed])  # type: ignore[no-untyped-call]

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        self._flatten_official(state_dict, prefix)
        self._complete_batchnorm(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _flatten_official(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        for name in ("weight", "bias", *NAMES):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == value.numel():
                state_dict[prefix + name] = value.reshape(-1)

    def _complete_batchnorm(self, state_dict: dict[str, Tensor], prefix: str) -> None:
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


def is_bare(module: nn.Module) -> bool:
    """Whether nobody listens to a module's calls."""
    return not (
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
    The activations of :mod:`rbnorm.elementwise`, and the residual, are computed in RBN's own second
    sweep; nothing more is kept for backward than the residual.

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
        act_kwargs: dict[str, object] | None = None,
        inplace: bool = True,
        drop_layer: Callable[[], nn.Module] | None = None,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        **calibration: Unpack[LayerOptions],
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
        activation = self._fused_activation()
        if activation is not None:
            slope = getattr(self.act, "negative_slope", 0.0)
            return self._normalise(input, residual, activation, slope)
        output: Tensor = self.drop(self._normalise(input))
        output = output if residual is None else output + residual
        return self.act(output)  # type: ignore[no-any-return]

    def _fused_activation(self) -> ActivationName | None:
        """The activation that can be part of the op; None where drop or act are other code."""
        if is_bare(self.drop) and is_bare(self.act) and not _has_any_global_hook():
            found = activation_of(self.act) if activation_of(self.drop) == "none" else None
            return cast("ActivationName | None", found)
        return None
