"""Fine-tuning: a pretrained network becomes a record."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import rbnorm
from rbnorm.models.files import replace, safetensors_of
from rbnorm.models.tuning import parameter_groups
from rbnorm_lab.checkpoints import read_weights
from rbnorm_lab.config import RunConfig
from rbnorm_lab.devices import device_name
from rbnorm_lab.domains.config import DomainRecord, DomainRun
from rbnorm_lab.domains.images import DomainImages
from rbnorm_lab.domains.testing import accuracies, accuracy
from rbnorm_lab.errors import UsageError
from rbnorm_lab.layers import calibration_summary
from rbnorm_lab.models import build_model
from rbnorm_lab.norms import swap
from rbnorm_lab.processes import make_accelerator
from rbnorm_lab.records import environment, now, number
from rbnorm_lab.training.loop import Training


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


def pretrained(run: DomainRun, classes: int, weights: Weights) -> nn.Module:
    """The pretrained network with a new head, its BatchNorm turned into the run's norm.

    Raises:
        UsageError: The weights are not those of this model.
    """
    model = build_model(run.model, "bn", classes=classes, channels=3, seed=run.seed)
    own = model.state_dict()
    fitting = {k: v for k, v in weights.state.items() if k in own and v.shape == own[k].shape}
    heads = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    missing = own.keys() - fitting.keys() - {f"{heads[-1]}.weight", f"{heads[-1]}.bias"}
    odd = sorted(missing | (weights.state.keys() - own.keys()))
    if odd:
        raise UsageError(f"the weights are not those of {run.model}: {odd[0]} does not fit")
    model.load_state_dict(fitting, strict=False)
    return swap(model, run.norm)


def training_of(run: DomainRun, images: DomainImages, weights: Weights) -> Training:
    """A run at its start, on the device of the images.

    Stochastic gradient descent with Nesterov momentum, a one-cycle learning rate and cross-entropy.
    The same run has the same images in the same order, cropped and flipped alike, on every device.

    Args:
        run: What to train.
        images: All images, on the device to train on.
        weights: The pretrained weights.
    """

    def groups(module: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
        calibration = {"lr": config.lr * run.calibration_rate}
        return parameter_groups(module, config.weight_decay, calibration=calibration)

    model = pretrained(run, len(images.classes), weights)
    data = images.without(run.target)
    return Training(model, run.training(), data, make_accelerator("no"), groups)


def fine_tune(
    run: DomainRun, images: DomainImages, weights: Weights
) -> tuple[nn.Module, float | None]:
    """The trained model, and its mean training loss in the last epoch."""
    training = training_of(run, images, weights)
    training.fit(on_epoch=lambda: training.end_epoch(test=False))
    return training.module.eval(), number(training.history[-1]["train_loss"])


def run_domain(
    run: DomainRun,
    images: DomainImages,
    weights: Weights,
    *,
    remedies: bool,
    keep: Path | None = None,
) -> DomainRecord:
    """Train and test.

    Args:
        run: What to run.
        images: All images, on the device to run on.
        weights: The pretrained weights.
        remedies: Test with all kinds of statistics, not only as trained.
        keep: File of safetensors to keep the trained network in.
    """
    device = images.images.device
    start = time.perf_counter()
    model, loss = fine_tune(run, images, weights)
    trained = time.perf_counter()
    if keep:
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        replace(keep, safetensors_of(state, {"run": json.dumps(run.to_dict())}))
    target = {}
    if not run.tuning:
        target = accuracies(model, images, images.target_test(run.target), remedies=remedies)
    return DomainRecord(
        config=run,
        train_loss=loss,
        source=accuracy(model, images, images.source_test(run.target)),
        target=target,
        calibration={} if run.tuning else calibration_summary(model),
        digests={"images": images.digest, "weights": weights.digest},
        device=device_name(device),
        backend=_backend(device),
        layout="channels last",
        seconds={"training": trained - start, "testing": time.perf_counter() - trained},
        environment=environment(),
        created=now(),
    )


def _backend(device: torch.device) -> str:
    backends = rbnorm.backends()
    return backends[device.type].name if device.type in backends else "portable"
