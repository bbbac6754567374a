"""What reaches RBN's parameters in the first steps of a training."""

import math
import time
from itertools import chain
from typing import Final

import torch

from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm_lab.config import RunConfig
from rbnorm_lab.data import ImageData
from rbnorm_lab.errors import UsageError
from rbnorm_lab.processes import make_accelerator
from rbnorm_lab.records import Record, environment, now
from rbnorm_lab.train import model_of
from rbnorm_lab.training.loop import Training
from rbnorm_lab.training.order import training_batches

PARAMETERS: Final = {
    "w_m": "center_weight",
    "w_v": "scale_weight",
    "w_b": "scale_bias",
    "gamma": "weight",
}


def first_gradients(config: RunConfig, data: ImageData) -> Record:
    """The root mean square of each parameter's gradient over the channels of all layers, by step.

    Args:
        config: The run, of which ``gradient_steps`` are taken.
        data: What it names.

    Raises:
        UsageError: A gradient is not finite.
    """
    start = time.perf_counter()
    training = Training(
        model_of(config, data), config, data, make_accelerator(config.mixed_precision)
    )
    steps = config.gradient_steps
    batches = training_batches(config, data, 0, range(steps), training.device)
    found: dict[str, list[float]] = {name: [] for name in PARAMETERS}
    for _ in range(steps):
        training.advance(batches)
        layers = [m for m in training.module.modules() if isinstance(m, _RepresentativeBatchNorm)]
        for name, attribute in PARAMETERS.items():
            all_ = torch.cat([getattr(layer, attribute).grad for layer in layers])
            found[name].append(all_.double().square().mean().sqrt().item())
    if not all(map(math.isfinite, chain.from_iterable(found.values()))):
        raise UsageError(f"gradients at --lr {config.lr:g} are not finite: take less")
    return Record(
        config=config,
        epochs=(),
        channel_mean_std={},
        calibration={},
        shifted={},
        diverged=False,
        device=str(training.device),
        seconds=time.perf_counter() - start,
        environment=environment(),
        created=now(),
        gradients=found,
    )
