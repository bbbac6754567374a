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
DATA: Final = ("digits", "fashion-mnist", "cifar10", f"{FOLDER}PATH")
CORRUPTIONS: Final = ("noise", "blur", "contrast", "brightness")
LR_BATCH_SIZE: Final = 64
"""The batch size that a study's learning rate is for; other batch sizes scale it in proportion."""


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

    def __post_init__(self) -> None:
        if self.norm.partition(":")[0] not in NORMS:
            raise UsageError(f"unknown norm {self.norm!r}: choose from {', '.join(NORMS)}")
        if self.mixed_precision not in MIXED_PRECISIONS:
            raise UsageError(
                f"unknown mixed precision {self.mixed_precision!r}: "
                f"choose from {', '.join(MIXED_PRECISIONS)}"
            )
        for name in ("batch_size", "epochs", "limit", "image_size", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1, not {value}")
        if self.workers < 0:
            raise UsageError(f"workers must be at least 0, not {self.workers}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr must be a positive number, not {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(
                f"weight decay must be zero or a positive number, not {self.weight_decay}"
            )
        if self.batch_size % self.processes:
            raise UsageError(
                f"batch size {self.batch_size} cannot be shared equally by {self.processes} "
                "processes: choose a multiple"
            )

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
