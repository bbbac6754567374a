"""One training run, described completely, and the names a description may use."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, get_type_hints

from rbnorm.lab.errors import UsageError

NORMS: Final = (
    *("bn", "gn", "ln", "in", "iebn", "bn-se", "frn", "evonorm-s0"),
    *("rbn", "rbn-center", "rbn-scale"),
)
MIXED_PRECISIONS: Final = ("no", "fp16", "bf16")
FOLDER: Final = "imagefolder:"
DATA: Final = ("digits", "fashion-mnist", "cifar10", "cifar100", f"{FOLDER}PATH")
SHIFTS: Final = ("none", "trained", "controls")
"""Corruptions are not applied; with the running statistics of training; and with others too."""
CORRUPTIONS: Final = (
    "noise",
    "impulse",
    "blur",
    "pixelate",
    "contrast",
    "brightness",
    "jpeg",
    "elastic",
)
NETWORKS: Final = (
    "small:torchvision:mobilenet_v3_small",
    "small:timm:regnetx_002",
    "small:timm:cs3darknet_s",
)
"""The further networks of the study of networks, adapted to small images."""
LR_BATCH_SIZE: Final = 64
"""The batch size that the learning rate of ``rbnorm compare`` is for; others scale it."""

_CHOICES: Final = {"norm": NORMS, "mixed_precision": MIXED_PRECISIONS, "shift": SHIFTS}
_LEAST: Final = {
    "batch_size": 1,
    "epochs": 1,
    "limit": 1,
    "image_size": 1,
    "processes": 1,
    "norm_batch": 1,
    "workers": 0,
    "pretrain_epochs": 0,
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that influences the result of one run, and nothing else.

    Attributes:
        data: Name of the data, with an absolute path where it has one.
        model: Name of the model as :func:`rbnorm.lab.models.canonical_name` gives it.
        norm: The norm as :func:`rbnorm.lab.norms.canonical_norm` gives it.
        batch_size: Images per optimiser step, over all processes.
        seed: Seed of the initial weights, of the data order and of augmentation.
        epochs: Passes over the training images.
        lr: Peak learning rate.
        weight_decay: Weight decay of every parameter.
        mixed_precision: One of :data:`MIXED_PRECISIONS`.
        limit: Number of training images used, or None for all.
        image_size: Side the images are resized to, or None for the data's own.
        workers: Processes that load images; each has its own stream of random augmentations.
        processes: Processes that train data-parallel; each has its own batch statistics.
        norm_batch: Images that are normalised together: each process cuts its share of a batch
            into parts of this size, whose gradients it accumulates. None for the whole share.
        sorted_batches: Sort each batch by class before it is cut, so that a part has few classes;
            the parts come in a random order.
        decay_calibration: Whether weight decay applies to RBN's three calibration parameters too.
        pretrain_epochs: Epochs with BatchNorm before the norm takes its place.
        pretrain_lr: Peak learning rate of these.
        held_out: Test on a part of the training images, which is then not trained on.
        shift: One of :data:`SHIFTS`: which accuracies under corruptions are measured at the end.
        trace: Test after every epoch and measure the layers' features; otherwise only the end's
            accuracy.

    Raises:
        UsageError: A value is out of range.
    """

    data: str
    model: str
    norm: str
    batch_size: int
    seed: int
    epochs: int
    lr: float
    weight_decay: float
    mixed_precision: str = "no"
    limit: int | None = None
    image_size: int | None = None
    workers: int = 0
    processes: int = 1
    norm_batch: int | None = None
    sorted_batches: bool = False
    decay_calibration: bool = True
    pretrain_epochs: int = 0
    pretrain_lr: float = 0.1
    held_out: bool = False
    shift: str = "none"
    trace: bool = True

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value.partition(":")[0] not in choices:
                raise UsageError(
                    f"unknown {name.replace('_', ' ')} {value!r}: choose from {', '.join(choices)}"
                )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name.replace('_', ' ')} must be at least {least}, not {value}")
        for name in ("lr", "pretrain_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name.replace('_', ' ')} must be a positive number, not {value}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(
                f"weight decay must be zero or a positive number, not {self.weight_decay}"
            )
        if self.batch_size % self.processes:
            raise UsageError(
                f"batch size {self.batch_size} cannot be shared equally by {self.processes} "
                "processes: choose a multiple"
            )
        if self.norm_batch and self.share % self.norm_batch:
            raise UsageError(
                f"{self.share} images cannot be cut into parts of {self.norm_batch} to normalise "
                "together: choose a divisor"
            )

    @property
    def share(self) -> int:
        """Images of a batch that each process has."""
        return self.batch_size // self.processes

    @property
    def key(self) -> str:
        """Names the run: equal for equal configs, in every process and on every machine."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Build a config from exactly its fields.

        Raises:
            UsageError: A field is missing, unknown or of another type, or a value out of range.
        """
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            odd = ", ".join(sorted(values.keys() ^ names))
            raise UsageError(f"a run config has exactly its fields, which does not hold for {odd}")
        for name, kind in get_type_hints(cls).items():
            if not isinstance(values[name], kind):
                raise UsageError(f"the run config's {name} is {values[name]!r}, which is no {kind}")
        return cls(**values)
