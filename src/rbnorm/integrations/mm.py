"""mmengine, mmcv and what is built on them: RBN by name in their configs."""

from __future__ import annotations

from contextlib import suppress

import rbnorm

__all__ = ["register"]


def register(force: bool = False) -> None:
    """Register RBN's layers, for ``norm_cfg=dict(type="RBN2d")`` and ``build_norm_layer``.

    Names: ``RBN`` and ``RBN2d``, ``RBN1d``, ``RBN3d``, ``SyncRBN``. They go to mmengine's
    registry, which mmcv's ``ConvModule`` and the frameworks on top of it ask.

    Args:
        force: Replace what others registered under these names.

    Raises:
        KeyError: A name is taken, and not by RBN.
    """
    with suppress(ImportError):
        from mmcv.cnn import bricks  # noqa: F401, PLC0415 - mmcv registers its own first
    from mmengine.registry import MODELS  # noqa: PLC0415

    layers = {
        "RBN": rbnorm.RepresentativeBatchNorm2d,
        "RBN1d": rbnorm.RepresentativeBatchNorm1d,
        "RBN2d": rbnorm.RepresentativeBatchNorm2d,
        "RBN3d": rbnorm.RepresentativeBatchNorm3d,
        "SyncRBN": rbnorm.SyncRepresentativeBatchNorm,
    }
    for name, layer in layers.items():
        if MODELS.get(name) is not layer:
            MODELS.register_module(name, module=layer, force=force)
