"""torch-pruning: whole channels leave an RBN layer, its calibration included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch_pruning.pruner.function import BasePruningFunc

from rbnorm.integrations import layer_classes
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm.layers.options import AFFINE, NAMES

__all__ = ["PRUNERS", "RepresentativeBatchNormPruner"]


class RepresentativeBatchNormPruner(BasePruningFunc):  # type: ignore[misc]
    """Takes channels out of every vector of a layer."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        """Remove the channels ``idxs``."""
        assert isinstance(layer, _RepresentativeBatchNorm)
        gone = set(idxs)
        keep = [channel for channel in range(layer.num_features) if channel not in gone]
        layer.num_features = len(keep)
        for name in (*AFFINE, *NAMES):
            vector = layer._parameters.get(name)
            if vector is not None:
                layer._parameters[name] = self._prune_parameter_and_grad(vector, keep, 0)
        for name, buffer in layer._buffers.items():
            if buffer is not None and buffer.ndim:
                layer._buffers[name] = buffer[keep]
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        """The number of channels."""
        return layer.num_features  # type: ignore[return-value]

    get_in_channels = get_out_channels


#: For ``customized_pruners=`` of torch-pruning's pruners and ``DependencyGraph``.
PRUNERS: dict[type, Any] = dict.fromkeys(layer_classes(), RepresentativeBatchNormPruner())
