"""Fine-tuning on all domains but one: a pretrained network becomes a record."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import rbnorm
from rbnorm.models.tuning import parameter_groups
from rbnorm_lab.checkpoints import read_weights
from rbnorm_lab.config import RunConfig
from rbnorm_lab.devices import device_name
from rbnorm_lab.domains.images import DomainImages
from rbnorm_lab.domains.testing import accuracies
from rbnorm_lab.errors import UsageError
from rbnorm_lab.models import build_model
from rbnorm_lab.norms import swap
from rbnorm_lab.records import Record
from rbnorm_lab.train import train_run


class Weights:
    """Pretrained weights of a model, read once.

    Args:
        model: Canonical name of the model.
        path: File of the weights; None for torchvision's own, downloaded if need be.

    Attributes:
        state: The tensors by name.
        digest: Of the tensors.

    Raises:
        UsageError: There is no such file, or no weights in it.
    """

    def __init__(self, model: str, path: Path | None) -> None:
        self.state = _torchvision_weights(model) if path is None else read_weights(path)
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state.items()):
            digest.update(name.encode() + tensor.numpy(force=True).tobytes())
        self.digest = digest.hexdigest()[:16]


def _torchvision_weights(model: str) -> dict[str, Tensor]:
    library, _, name = model.rpartition(":")
    if library != "torchvision":
        raise UsageError(f"--weights must name the file of {model}'s pretrained weights")
    try:
        weights: Any = torchvision.models.get_model_weights(name).DEFAULT
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise UsageError(
            f"the weights of {model} cannot be downloaded ({error}): name their file with --weights"
        ) from error
    return state


def pretrained(config: RunConfig, classes: int, weights: Weights) -> nn.Module:
    """The pretrained network with a new head, its BatchNorm turned into the run's norm.

    Raises:
        UsageError: The weights are not those of this model.
    """
    model = build_model(config.model, "bn", classes=classes, channels=3, seed=config.seed)
    own = model.state_dict()
    fitting = {k: v for k, v in weights.state.items() if k in own and v.shape == own[k].shape}
    heads = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    missing = own.keys() - fitting.keys() - {f"{heads[-1]}.weight", f"{heads[-1]}.bias"}
    odd = sorted(missing | (weights.state.keys() - own.keys()))
    if odd:
        raise UsageError(f"the weights are not those of {config.model}: {odd[0]} does not fit")
    model.load_state_dict(fitting, strict=False)
    return swap(model, config.norm)


def groups(module: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    """The groups of parameters: the calibration has a learning rate of its own."""
    calibration = {"lr": config.lr * config.calibration_rate}
    return parameter_groups(module, config.weight_decay, calibration=calibration)


def fine_tune(
    config: RunConfig,
    images: DomainImages,
    weights: Weights,
    on_step: Callable[[], None] = lambda: None,
    on_trained: Callable[[nn.Module], None] = lambda model: None,
) -> Record:
    """Train on all domains but the target, test on it and on held-out images of the others.

    Stochastic gradient descent with Nesterov momentum, a one-cycle learning rate and cross-entropy.
    The same run has the same images in the same order, cropped and flipped alike, on every device.

    Args:
        config: The run; ``shift`` asks for the target's accuracy as trained, or with all
            statistics of :data:`rbnorm_lab.domains.testing.STATISTICS`.
        images: All images, on the device to run on.
        weights: The pretrained weights.
        on_step: Called after every optimiser step.
        on_trained: Called with the trained model.
    """
    assert config.target is not None
    target, device = config.target, images.images.device

    def measure(model: nn.Module, *_: object) -> dict[str, dict[str, float]]:
        chosen, remedies = images.target_test(target), config.shift == "controls"
        found = accuracies(model, images, chosen, remedies=remedies)
        return {statistics: {target: value} for statistics, value in found.items()}

    record = train_run(
        config,
        images.without(target),
        on_step,
        on_trained,
        build=lambda config, data: pretrained(config, data.classes, weights),
        groups=groups,
        measure=measure,
    )
    facts = {
        "images": images.digest,
        "weights": weights.digest,
        "backend": _backend(device),
        "layout": "channels last",
    }
    return replace(record, device=device_name(device), facts=facts)


def _backend(device: torch.device) -> str:
    backends = rbnorm.backends()
    return backends[device.type].name if device.type in backends else "portable"
