"""The layers: torch's BatchNorm classes with the calibration parameters of RBN."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_modules
from typing_extensions import Unpack

from rbnorm.elementwise import ActivationName, activation_of
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm.layers.options import LayerOptions

_CALL = nn.Module.__call__  # as torch has it

__all__ = [
    "RepresentativeBatchNorm1d",
    "RepresentativeBatchNorm2d",
    "RepresentativeBatchNorm3d",
    "RepresentativeBatchNormAct2d",
]

_GLOBAL_HOOKS = (  # the dictionaries stay the same objects
    torch_modules._global_backward_pre_hooks,
    torch_modules._global_backward_hooks,
    torch_modules._global_forward_pre_hooks,
    torch_modules._global_forward_hooks,
)


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

    As in BatchNorm, each forward pass in training is an update of the running statistics, so
    activation checkpointing counts a batch twice. :func:`rbnorm.freeze` keeps them, and uses them,
    in training too.

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
    """Whether calling a module does nothing but its ``forward``, global hooks aside."""
    return type(module).__call__ is _CALL and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class RepresentativeBatchNormAct2d(RepresentativeBatchNorm2d):
    r"""RBN followed by drop and activation, ``act(drop(RBN(x)))``: timm's norm-act slot.

    Called with a ``residual`` of the input's shape and dtype it is
    ``act(drop(RBN(x)) + residual)``.
    The activations of :mod:`rbnorm.elementwise`, and the residual, are computed in RBN's own second
    sweep; nothing more is kept for backward than the residual.

    Args:
        num_features: As in :class:`RepresentativeBatchNorm2d`, like all that are not listed here.
        apply_act: Apply the activation at all.
        act_layer: Makes the activation; a class, a function, or None for no activation.
        act_kwargs: More arguments for ``act_layer``.
        inplace: Pass ``inplace=True`` to ``act_layer`` if it has that argument.
        drop_layer: Makes the drop layer; None for none.
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
            takes = "inplace" in inspect.signature(act_layer).parameters
            options = {"inplace": True} if inplace and takes else {}
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
        """The activation that can be part of the op; None where drop or act do something else."""
        if is_bare(self.drop) and is_bare(self.act) and not any(_GLOBAL_HOOKS):
            name = activation_of(self.act) if activation_of(self.drop) == "none" else None
            return cast("ActivationName | None", name)
        return None
