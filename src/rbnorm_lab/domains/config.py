"""One fine-tuning, described completely, and what is kept of it."""

from dataclasses import dataclass, fields
from typing import Final

from rbnorm_lab.config import Config, RunConfig
from rbnorm_lab.errors import positive

TRAINED: Final = "trained"
"""Tested as trained, with the running statistics."""


@dataclass(frozen=True)
class DomainRun(Config):
    """Everything that influences the result of one fine-tuning, and nothing else.

    Attributes:
        images: Name of the images.
        model: Name of the model as :func:`rbnorm_cli.names.model_name` gives it.
        norm: What takes the place of the pretrained network's BatchNorm, as
            :func:`rbnorm_lab.norms.canonical_norm` gives it.
        frozen: Whether training normalises by the pretrained running statistics and keeps them.
        target: The domain that is not trained on.
        seed: Seed of the new head, of the order of the images and of their augmentation.
        epochs: Passes over the training images of the other domains.
        batch_size: Images per optimiser step.
        lr: Peak learning rate.
        calibration_rate: That of RBN's calibration, in multiples of ``lr``.
        weight_decay: Weight decay of convolutions and linear layers.
        image_size: Side of the images.
        tuning: Whether only the source is tested, to choose learning rates.

    Raises:
        UsageError: A value is out of range.
    """

    WHAT = "domain run"

    images: str
    model: str
    norm: str
    frozen: bool
    target: str
    seed: int
    epochs: int
    batch_size: int
    lr: float
    calibration_rate: float
    weight_decay: float
    image_size: int
    tuning: bool

    def __post_init__(self) -> None:
        positive(calibration_rate=self.calibration_rate)
        self.training()

    def training(self) -> RunConfig:
        """The run as the loop of every training takes it.

        Raises:
            UsageError: A value is out of range.
        """
        names = [field.name for field in fields(RunConfig) if hasattr(self, field.name)]
        shared = {name: getattr(self, name) for name in names}
        return RunConfig(f"{self.images} without {self.target}", **shared)


@dataclass(frozen=True)
class DomainRecord:
    """One finished fine-tuning.

    Attributes:
        config: What was run.
        train_loss: Mean training loss of the last epoch; None if it is not finite.
        source: Accuracy on the held-out images of the source domains, as trained.
        target: Accuracy on all images of the target by the statistics it was tested with; nothing
            for a tuning run.
        calibration: For every RBN layer and calibration parameter, the distribution over channels.
        digests: Of the images' files and of the pretrained weights.
        device: Where it ran.
        backend: What computed RBN.
        layout: In memory, of activations and convolutions.
        seconds: Duration of training and of testing.
        environment: Versions, platform and commit.
        created: When it ended, in UTC.
    """

    config: DomainRun
    train_loss: float | None
    source: float
    target: dict[str, float]
    calibration: dict[str, dict[str, dict[str, float | None]]]
    digests: dict[str, str]
    device: str
    backend: str
    layout: str
    seconds: dict[str, float]
    environment: dict[str, str | None]
    created: str


@dataclass(frozen=True)
class DomainFailure:
    """A fine-tuning that raised an error.

    Attributes:
        config: What was run.
        error: The error, in one line.
        trace: Where it was raised.
        created: When, in UTC.
    """

    config: DomainRun
    error: str
    trace: str
    created: str
