"""What a config says of the optimiser: its groups of parameters and its learning rate."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from rbnorm.models.tuning import parameter_groups
from rbnorm_lab.config import ONE_CYCLE, RunConfig

MOMENTUM: Final = 0.9

Groups = Callable[[nn.Module, RunConfig], list[dict[str, Any]]]
"""Groups of a model's parameters; each may have a peak ``lr`` and a ``weight_decay`` of its own."""


def groups_of(module: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """All parameters together, or the calibration apart and without decay where the config says."""
    decay = config.weight_decay
    if config.decay_calibration:
        return [{"params": list(module.parameters()), "weight_decay": decay}]
    return [
        {**group, "weight_decay": 0.0 if group["name"] == "calibration" else decay}
        for group in parameter_groups(module, decay)
    ]


def optimiser_of(
    module: nn.Module, config: RunConfig, steps: int, groups: Groups = groups_of
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Stochastic gradient descent, and the learning rate of every step.

    The recipe ``one-cycle`` is Nesterov momentum with torch's ``OneCycleLR``; the recipe ``steps``
    that of ResNet on ImageNet, with which the paper trains RBN: momentum 0.9 and a learning rate
    divided by 10 every few epochs.

    Args:
        module: What is trained.
        config: The run.
        steps: Optimiser steps of an epoch.
        groups: The parameters.
    """
    one_cycle = config.recipe == ONE_CYCLE
    optimizer = torch.optim.SGD(
        groups(module, config), config.lr, momentum=MOMENTUM, nesterov=one_cycle, fused=True
    )
    if one_cycle:
        peaks = [group["lr"] for group in optimizer.param_groups]
        return optimizer, OneCycleLR(optimizer, peaks, total_steps=config.epochs * steps)
    return optimizer, LambdaLR(
        optimizer, lambda step: 10.0 ** -(step // steps // config.decay_every)
    )
