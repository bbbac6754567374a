"""What all layers are: torch's BatchNorm with the calibration parameters of RBN."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import Parameter
from typing_extensions import Self

from rbnorm.definition import Restriction, Statistic, StatisticName
from rbnorm.elementwise import ActivationName, RestrictionName
from rbnorm.engine.batch import Group
from rbnorm.functional import representative_batch_norm
from rbnorm.kernels.phases import table_dtype
from rbnorm.layers.checkpoints import complete_batchnorm, flatten_official
from rbnorm.layers.deferred import with_initial_value
from rbnorm.layers.guard import RunningMean
from rbnorm.layers.options import (
    AFFINE,
    BUFFERS,
    NAMES,
    Calibration,
    bias_option,
    check_rates,
)

Model = TypeVar("Model", bound=nn.Module)

# Where a layer keeps what gamma was when `assert_intact` last saw it.
GAMMA = "_gamma"
# The BatchNorm for inputs of each rank.
_KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
# As torch has them, before anybody replaces them.
_FORWARD = _BatchNorm.forward
_GETATTR, _GETATTRIBUTE = nn.Module.__getattr__, nn.Module.__getattribute__


class _RepresentativeBatchNorm(_BatchNorm):
    """Everything of RBN but the rank of its input; see :class:`RepresentativeBatchNorm2d`."""

    center_weight: Parameter | None
    scale_weight: Parameter | None
    scale_bias: Parameter | None
    calibration: Calibration
    running_mean: Any = RunningMean()
    #: Refuse functions that would make a BatchNorm of this layer; see `rbnorm.assert_intact`.
    guarded: bool = True
    #: Whether gamma was divided by R(w_b), so that the layer computes BatchNorm at first.
    preserved: bool = False
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
        check_rates(eps, momentum)
        options = bias_option(bias)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **options
        )
        self.calibrate(
            calibration, lambda: Parameter(torch.empty(num_features, device=device, dtype=dtype))
        )
        self.reset_parameters()

    def calibrate(self, calibration: Calibration, new: Callable[[], Parameter]) -> None:
        """Give what has been a BatchNorm the options, and parameters made by ``new``."""
        self.calibration = calibration
        initial = calibration.initial()
        for name in NAMES:
            value = initial.get(name)
            vector = None if value is None else with_initial_value(new(), value)
            self.register_parameter(name, vector)

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
        for tensor, value in self.additions().values():
            nn.init.constant_(tensor, value)

    def additions(self) -> dict[str, tuple[Tensor, float]]:
        """The tensors that BatchNorm does not have, by name, each with its initial value."""
        values = self.calibration.initial().items()
        found = {n: (p, v) for n, v in values if (p := self._parameters.get(n)) is not None}
        constant = self._buffers.get("weight")  # of `convert_batchnorm`, in the place of gamma
        gate = {} if constant is None else {"weight": (constant, 1 / self.calibration.gate())}
        return {**found, **gate}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As torch does; a calibration that gets memory gets its initial values too."""
        absent = [name for name, (tensor, _) in self.additions().items() if tensor.is_meta]
        neighbours = (self._parameters.get("weight"), self._buffers.get("running_mean"))
        layer = next((t for t in neighbours if t is not None and not t.is_meta), None)
        if absent and layer is not None:  # of a checkpoint without calibration
            here = partial(torch.empty_like, device=layer.device)
            super()._apply(lambda t: here(t) if t.is_meta else t, recurse=False)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, (tensor, value) in self.additions().items():
            if name in absent:
                nn.init.constant_(tensor, value)
        return self

    def forward(self, input: Tensor) -> Tensor:
        """Normalise and calibrate; see the class."""
        if isinstance(input, fx.Proxy):
            return self._as_node(input)
        return self._normalise(input)

    def _as_node(self, *inputs: Any) -> Any:
        """One node of the graph that ``torch.fx`` traces symbolically, like torch's own layers."""
        tracer = inputs[0].tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), inputs, {})

    def _normalise(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        activation: ActivationName | None = None,
        negative_slope: float = 0.0,
    ) -> Tensor:
        kind = _KINDS.get(input.ndim, _BatchNorm)
        if kind.forward is not _FORWARD:
            raise RuntimeError(
                f"{kind.__name__}.forward was replaced, which {type(self).__name__} would ignore, "
                "since it has its own; put it back, or replace that of the RBN class, too"
            )
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        (weight, bias, w_m, w_v, w_b), (mean, var, batches) = self._tensors()
        from_batch = self.training and not self.frozen_stats
        track = from_batch and self.track_running_stats
        used = track or not from_batch
        factor = self._factor(mean, batches) if track else 0.0
        counted = batches if track else None
        try:
            return representative_batch_norm(
                input,
                mean if used else None,
                var if used else None,
                weight,
                bias,
                from_batch or (mean is None and var is None),
                factor,
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
        except (TypeError, ValueError):  # refused
            counted = None
            raise
        finally:  # also where activation checkpointing stops the call early
            if counted is not None:
                counted.add_(1)

    def _tensors(self) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """The vectors; the running statistics and the count of batches."""
        kind, p, b = type(self), self._parameters, self._buffers
        if kind.__getattr__ is _GETATTR and kind.__getattribute__ is _GETATTRIBUTE:
            try:  # faster than torch's own look-up
                own = p["weight"], p["bias"], p["center_weight"], p["scale_weight"], p["scale_bias"]
                return own, (b["running_mean"], b["running_var"], b["num_batches_tracked"])
            except KeyError:  # pruned, parametrised, or deleted
                pass
        own = tuple(getattr(self, name) for name in (*AFFINE, *NAMES))
        return own, tuple(getattr(self, name) for name in BUFFERS)

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
        flags = ("frozen_stats", "synchronised")
        changed += [f", {name}=True" for name in flags if getattr(self, name)]
        return "".join([super().extra_repr(), *changed])  # type: ignore[no-untyped-call]

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        flatten_official(state_dict, prefix)
        gate = self.calibration.gate() if self.preserved else None
        complete_batchnorm(self, self.additions(), gate, state_dict, prefix)
        vars(self).pop(GAMMA, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def rbn_layers(model: nn.Module) -> list[tuple[str, _RepresentativeBatchNorm]]:
    """The RBN layers of a model with their names; an error if there is none."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, _RepresentativeBatchNorm)]
    if not layers:
        raise ValueError(f"model must have an RBN layer, got {type(model).__name__} without one")
    return layers
