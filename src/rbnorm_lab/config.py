"""One training run, described completely."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Final

import msgspec

from rbnorm_lab.errors import UsageError, check_least, first_line, positive
from rbnorm_lab.models import model_name
from rbnorm_lab.names import CORRUPTIONS, MIXED_PRECISIONS, data_name

WHOLE: Final = ("whole", "whole-controls")
SHIFTS: Final = ("none", "trained", "controls", *WHOLE)
"""Corruptions are not applied; with the running statistics of training; with others too; and both
of these on all test images, not on a part of them."""
STUDIED_SEVERITIES: Final = (1, 3, 5)
CLEAN: Final = "clean"
CONDITIONS: Final = (
    CLEAN,
    *(f"{kind}/{severity}" for kind in CORRUPTIONS for severity in STUDIED_SEVERITIES),
)
"""What accuracies under corruptions are measured on."""
ONE_CYCLE, STEPS = RECIPES = ("one-cycle", "steps")
"""Nesterov momentum with a learning rate that rises and falls once; and the recipe of ResNet on
ImageNet, momentum with a learning rate divided by 10 every few epochs."""
LR_BATCH_SIZE: Final = {ONE_CYCLE: 64, STEPS: 256}
"""The batch size that each recipe's learning rate is for; others scale it in proportion."""

_CHOICES: Final = {
    "mixed_precision": MIXED_PRECISIONS,
    "shift": SHIFTS,
    "recipe": RECIPES,
}
_NAMES: Final = {"data": data_name, "model": model_name}


@dataclass(frozen=True)
class RunConfig:
    """Everything that influences the result of one run, and nothing else.

    Attributes:
        data: Name of the data, with an absolute path where it has one.
        model: Name of the model as :func:`rbnorm_lab.models.model_name` gives it.
        norm: The norm as :func:`rbnorm_lab.norms.canonical_norm` gives it.
        batch_size: Images per optimiser step, over all processes.
        seed: Seed of the initial weights, of the data order and of augmentation.
        epochs: Passes over the training images.
        lr: Peak learning rate.
        weight_decay: Weight decay of every parameter.
        mixed_precision: One of :data:`rbnorm_lab.names.MIXED_PRECISIONS`.
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
        recipe: One of :data:`RECIPES`, with weight decay on every parameter.
        decay_every: Epochs after which the recipe ``steps`` divides the learning rate by 10.
        test_limit: Number of images to test on, or None for all.
        frozen: Train with the running statistics of the layers that have any, and keep them.
        in_order: Take the images of every epoch in their order, not shuffled.
        match_moments: Set every image's own mean and contrast before the network sees it; see
            :mod:`rbnorm_lab.image_moments`.
        conditions: The corruptions that are measured where ``shift`` asks for any, as
            ``kind/severity``; none for all of :data:`CONDITIONS`.
        target: The domain of the images that is not trained on and that is tested on, where a
            pretrained network is fine-tuned on the others; None where there are no domains.
        calibration_rate: Learning rate of RBN's calibration in such a fine-tuning, in multiples of
            ``lr``.

    Raises:
        UsageError: A value is out of range.
    """

    LATER: ClassVar[tuple[str, ...]] = (
        *("recipe", "decay_every", "test_limit", "frozen", "in_order"),
        *("match_moments", "conditions", "target", "calibration_rate"),
    )
    """Fields that the first records lack; left out at their defaults, they leave keys as they
    were."""

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
    recipe: str = ONE_CYCLE
    decay_every: int = 30
    test_limit: int | None = None
    frozen: bool = False
    in_order: bool = False
    match_moments: bool = False
    conditions: tuple[str, ...] = ()
    target: str | None = None
    calibration_rate: float = 1.0

    def __post_init__(self) -> None:
        self._check_ranges()
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

    def _check_ranges(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(
                    f"unknown {name.replace('_', ' ')} {value!r}: choose from {', '.join(choices)}"
                )
        check_least(vars(self))
        positive(lr=self.lr, pretrain_lr=self.pretrain_lr, calibration_rate=self.calibration_rate)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(
                f"weight decay must be zero or a positive number, not {self.weight_decay}"
            )

    @property
    def share(self) -> int:
        """Images of a batch that each process has."""
        return self.batch_size // self.processes

    @classmethod
    def of(cls, options: Mapping[str, Any], **values: Any) -> "RunConfig":
        """The config of a command's options.

        Args:
            options: By name; those that are no fields of a config are left out.
            values: The fields that are no options, or in place of them.

        Raises:
            UsageError: A value is out of range, or there is no such data or model.
        """
        own = {f.name: options[f.name] for f in fields(cls) if f.name in options}
        own |= {name: spelt(own[name]) for name, spelt in _NAMES.items() if name in own}
        return cls(**own | values)

    @cached_property
    def key(self) -> str:
        """Names the config: equal for equal ones, in every process and on every machine."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Its fields, as records keep them."""
        defaults = {field.name: field.default for field in fields(self)}
        values = asdict(self)
        return {k: v for k, v in values.items() if k not in self.LATER or v != defaults[k]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Build a config from what :meth:`to_dict` gives.

        Raises:
            UsageError: A field is missing or of another type, or a value out of range.
        """
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"this is no run config ({first_line(error)})") from error

    def tested_on(self) -> tuple[str, ...]:
        """What it is measured on with each kind of statistics, where ``shift`` asks for any."""
        if self.target is not None:
            return (self.target,)
        return (CLEAN, *self.conditions) if self.conditions else CONDITIONS

    def identity(self) -> dict[str, Any]:
        """Everything that the weights at a step depend on, and nothing else.

        Who loads the images, what is measured at the end and where a folder of images lies is not
        part of it, nor how many epochs follow where the learning rate does not depend on it.
        """
        values = asdict(self)
        ends = ("epochs",) if self.recipe == STEPS else ()
        for name in ("workers", "shift", "conditions", "trace", *ends):
            del values[name]
        return {**values, "data": self.data.partition(":")[0]}
