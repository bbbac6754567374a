"""Layers whose batch is spread over processes, and models made of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist
from typing_extensions import Unpack

from rbnorm.layers.base import Model, _RepresentativeBatchNorm, rbn_layers
from rbnorm.layers.classes import RepresentativeBatchNormAct2d
from rbnorm.layers.options import LayerOptions

__all__ = [
    "SyncRepresentativeBatchNorm",
    "SyncRepresentativeBatchNormAct2d",
    "convert_sync",
    "revert_sync",
]


class SyncRepresentativeBatchNorm(_RepresentativeBatchNorm):
    r"""RBN whose statistics in training are those of all processes' batches.

    The counterpart of :class:`torch.nn.SyncBatchNorm`, on any device and backend: the mean
    :math:`E` and variance :math:`V` of :math:`z = x + w_m K(x)` are taken over the values of all
    processes, weighted by their numbers, so batches may differ in size or be empty. :math:`K`
    belongs to one instance and needs no communication. A forward pass gathers 2 C + 1 numbers of
    each process, a backward pass sums 2 C numbers, one collective each, as SyncBatchNorm does.
    Parameters get the gradients of the process's own instances:
    :class:`torch.nn.parallel.DistributedDataParallel` averages them.

    In evaluation, without an initialised process group, and in a group of one the layer is
    :class:`RepresentativeBatchNorm2d`, for inputs of any rank from 2 on.

    Args:
        num_features: As in :class:`RepresentativeBatchNorm2d`, like all that are not listed here.
        process_group: The processes that share a batch; None for all.
        **calibration: The keyword-only arguments of :class:`RepresentativeBatchNorm2d`.

    Raises:
        ValueError: As :class:`RepresentativeBatchNorm2d`, but one value per channel is accepted in
            training where other processes have more.
    """

    synchronised = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        **calibration: Unpack[LayerOptions],
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **calibration
        )
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")


class SyncRepresentativeBatchNormAct2d(RepresentativeBatchNormAct2d):
    """:class:`RepresentativeBatchNormAct2d` with the batch of all processes in training."""

    synchronised = True


def convert_sync(model: Model, process_group: dist.ProcessGroup | None = None) -> Model:
    """Make every RBN layer of a model share its batch with other processes, in place.

    Each layer stays what it is; its attributes ``synchronised`` and ``process_group`` are set. They
    are copied and pickled with the layer, as far as a process group can be, and are no part of
    ``state_dict()``. Layers that are synchronised already get the new group.

    Args:
        model: Any module, or a single layer.
        process_group: The processes that share a batch; None for all.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: There is no RBN layer.
    """
    for _, layer in rbn_layers(model):
        layer.synchronised, layer.process_group = True, process_group
    return model


def revert_sync(model: Model) -> Model:
    """Make every synchronised RBN layer of a model keep its batch to itself again, in place.

    Args:
        model: Any module, or a single layer.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: There is no RBN layer.
    """
    for _, layer in rbn_layers(model):
        layer.synchronised, layer.process_group = False, None
    return model
