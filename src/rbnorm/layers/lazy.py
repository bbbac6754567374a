"""RBN layers that learn their number of channels from the first input."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _LazyNormBase
from torch.nn.parameter import Parameter, UninitializedParameter
from typing_extensions import Unpack

from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm.layers.classes import (
    RepresentativeBatchNorm1d,
    RepresentativeBatchNorm2d,
    RepresentativeBatchNorm3d,
)
from rbnorm.layers.options import Calibration, CalibrationOptions, bias_option

__all__ = [
    "LazyRepresentativeBatchNorm1d",
    "LazyRepresentativeBatchNorm2d",
    "LazyRepresentativeBatchNorm3d",
]


class _LazyRepresentativeBatchNorm(_LazyNormBase, _RepresentativeBatchNorm):
    """RBN that learns ``num_features`` from its first input; otherwise the layer it is named after.

    All arguments are those of that layer.
    """

    guarded = False  # torch's own methods size the buffers, which have nothing to lose yet

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        **calibration: Unpack[CalibrationOptions],
    ) -> None:
        chosen = Calibration.of(**calibration)
        options = bias_option(bias)
        super().__init__(eps, momentum, affine, track_running_stats, device, dtype, **options)

        def new() -> Parameter:
            return cast("Parameter", UninitializedParameter(device=device, dtype=dtype))  # type: ignore[call-arg]

        self.calibrate(chosen, new)

    def initialize_parameters(self, input: Tensor) -> None:
        """Give every parameter and buffer the channel count of ``input``."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        fresh = self.has_uninitialized_params()  # and not loaded from a checkpoint
        self.num_features = input.shape[1]
        for name in self.calibration.initial():
            parameter = getattr(self, name)
            if isinstance(parameter, UninitializedParameter):
                parameter.materialize((self.num_features,))
        super().initialize_parameters(input)
        if fresh:
            self.reset_parameters()


class LazyRepresentativeBatchNorm1d(_LazyRepresentativeBatchNorm, RepresentativeBatchNorm1d):
    """:class:`rbnorm.RepresentativeBatchNorm1d` sized by its first input."""

    cls_to_become = RepresentativeBatchNorm1d


class LazyRepresentativeBatchNorm2d(_LazyRepresentativeBatchNorm, RepresentativeBatchNorm2d):
    """:class:`rbnorm.RepresentativeBatchNorm2d` sized by its first input."""

    cls_to_become = RepresentativeBatchNorm2d


class LazyRepresentativeBatchNorm3d(_LazyRepresentativeBatchNorm, RepresentativeBatchNorm3d):
    """:class:`rbnorm.RepresentativeBatchNorm3d` sized by its first input."""

    cls_to_become = RepresentativeBatchNorm3d
