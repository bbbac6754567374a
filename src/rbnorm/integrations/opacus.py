"""Opacus: RBN in training mixes the instances of a batch, as BatchNorm does, and is refused."""

from __future__ import annotations

from typing import Any

from torch import nn

from rbnorm.integrations import layer_classes
from rbnorm.layers.base import _RepresentativeBatchNorm

__all__ = ["register"]


def register() -> None:
    """Tell Opacus's ``ModuleValidator`` that RBN cannot be private, and that GroupNorm can.

    ``import rbnorm`` does this, whether Opacus is imported before or after it; classes of your own
    that derive from RBN's are told by calling it again. ``ModuleValidator.fix`` puts a GroupNorm
    in the layer's place, which drops the calibration on purpose.
    """
    from opacus.validators import ModuleValidator  # noqa: PLC0415
    from opacus.validators.errors import ShouldReplaceModuleError  # noqa: PLC0415

    def validate(module: nn.Module) -> list[Any]:
        return [
            ShouldReplaceModuleError(
                "Representative Batch Normalization cannot be trained with differential privacy: "
                "its statistics are those of the batch, so an instance's output depends on the "
                "others; use ModuleValidator.fix(model), or GroupNorm from the start"
            )
        ]

    def fix(module: _RepresentativeBatchNorm, **kwargs: Any) -> nn.Module:
        batchnorm = nn.BatchNorm2d(module.num_features, module.eps, affine=module.affine)
        fixer = ModuleValidator.FIXERS[nn.BatchNorm2d]
        return fixer(batchnorm, **kwargs)  # type: ignore[no-any-return]

    for kind in layer_classes():
        ModuleValidator.VALIDATORS[kind] = validate
        ModuleValidator.FIXERS[kind] = fix
