"""Ultralytics: training that converts after loading, and does not fuse."""

from __future__ import annotations

from typing import Any

from torch import nn

from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm.models.convert import convert_batchnorm
from rbnorm.models.record import convert_as_recorded, record_layers

__all__ = ["RepresentativeBatchNormTrainer", "keep_unfused"]


class _Unfused:
    """A model's ``fuse`` that leaves it as it is; copies and files of the model have it too."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.model


def keep_unfused(model: nn.Module) -> nn.Module:
    """Make ``model.fuse()`` return the model, which validation, prediction and export call.

    Args:
        model: An Ultralytics model with RBN layers; fusing it would be refused.

    Returns:
        ``model`` itself.
    """
    vars(model)["fuse"] = _Unfused(model)
    return model


class RepresentativeBatchNormTrainer:
    """The first base of a trainer class, which makes it train RBN.

    ::

        class Trainer(RepresentativeBatchNormTrainer, DetectionTrainer):
            rbn = {"center_weight_init": 0.0}  # options of convert_batchnorm

        YOLO("yolo11n.pt").train(trainer=Trainer, data="coco8.yaml")

    The trainer builds the model from its description and loads the weights; then this converts it:
    to the layers of the weights, where those are of an RBN model, else with the options, keeping
    the function where there are weights. The model is not fused.
    """

    rbn: dict[str, Any] = {}  # noqa: RUF012 - options are given where the class is written

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> nn.Module:
        """As in the other base, converted."""
        model: Any = super().get_model(cfg, weights, verbose)  # type: ignore[misc]
        trained = weights if isinstance(weights, nn.Module) else nn.Identity()
        if any(isinstance(module, _RepresentativeBatchNorm) for module in trained.modules()):
            convert_as_recorded(model, record_layers(trained))
            model.load(weights, verbose=False)
        else:
            convert_batchnorm(model, preserve=weights is not None, **self.rbn)
        return keep_unfused(model)
