"""Fine-tuning on all domains but one: a pretrained network becomes a record."""

import hashlib
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn

import rbnorm
from rbnorm.models.tuning import parameter_groups
from rbnorm_lab.checkpoints import read_weights
from rbnorm_lab.config import RunConfig
from rbnorm_lab.domains.images import DomainImages
from rbnorm_lab.domains.testing import accuracies
from rbnorm_lab.errors import UsageError
from rbnorm_lab.models import build_model
from rbnorm_lab.norms import swap


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


def own_parts(config: RunConfig, images: DomainImages, weights: Weights) -> dict[str, Any]:
    """What the training of such a run has in place of what others have.

    Stochastic gradient descent with Nesterov momentum, a one-cycle learning rate and cross-entropy;
    the calibration has a learning rate of its own. Images come in the same order, cropped and
    flipped alike, on every device. The model is tested on the target as trained, or, where
    ``shift`` asks for controls, with all of :data:`rbnorm_lab.domains.testing.STATISTICS`.

    Args:
        config: The run.
        images: All images, on the device to run on.
        weights: The pretrained weights.

    Returns:
        Arguments of :func:`rbnorm_lab.train.train_run`.
    """
    assert config.target is not None
    target, calibration = config.target, {"lr": config.lr * config.calibration_rate}

    def measure(model: nn.Module, *_: object) -> dict[str, dict[str, float]]:
        chosen, remedies = images.target_test(target), config.shift == "controls"
        found = accuracies(model, images, chosen, remedies=remedies)
        return {statistics: {target: value} for statistics, value in found.items()}

    return {
        "build": lambda config, data: pretrained(config, data.classes, weights),
        "groups": lambda module, config: parameter_groups(
            module, config.weight_decay, calibration=calibration
        ),
        "measure": measure,
    }


def facts_of(images: DomainImages, weights: Weights) -> dict[str, str]:
    """What else the numbers of such runs depend on."""
    backend = rbnorm.backends().get(images.images.device.type)
    return {
        "images": images.digest,
        "weights": weights.digest,
        "backend": backend.name if backend else "portable",
        "layout": "channels last",
    }
