"""MONAI: RBN by name in its networks."""

from __future__ import annotations

from torch import nn

import rbnorm

__all__ = ["register"]


def register() -> None:
    """Register RBN with MONAI's norm factory, for ``norm="rbn"`` or ``("rbn", {"eps": 1e-3})``."""
    from monai.networks.layers.factories import Norm  # noqa: PLC0415

    layers = (
        rbnorm.RepresentativeBatchNorm1d,
        rbnorm.RepresentativeBatchNorm2d,
        rbnorm.RepresentativeBatchNorm3d,
    )

    def rbn(dim: int) -> type[nn.Module]:
        return layers[dim - 1]

    if "RBN" not in Norm.names:
        Norm.add_factory_callable("rbn", rbn)
