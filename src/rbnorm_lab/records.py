"""What is kept of a run, finished or failed."""

import math
import os
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from traceback import format_exception
from typing import Any, Final

import torch

import rbnorm
from rbnorm_lab.config import RunConfig
from rbnorm_lab.errors import first_line

_PIPES: Final[dict[str, Any]] = {"capture_output": True, "text": True}

Number = float | None
"""A measured number; None stands for one that is not finite, which JSON cannot say."""


def number(value: float | None) -> Number:
    """``value``, or None if it is not finite."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Epoch:
    """The metrics of one epoch: means over the images, accuracies between 0 and 1.

    The last epoch was tested; earlier ones only where the config's ``trace`` says so.
    """

    train_loss: Number
    train_accuracy: float | None
    test_loss: Number
    test_accuracy: float | None
    seconds: float

    def __post_init__(self) -> None:
        for accuracy in (self.train_accuracy, self.test_accuracy):
            _check_share(accuracy)


def _check_share(value: Number) -> None:
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"an accuracy lies between 0 and 1, and one is {value}")


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        config: What was run.
        epochs: Metrics of every epoch.
        channel_mean_std: For every normalisation layer by name, the standard deviation over
            channels of the channel means of its output on the test images.
        calibration: For every RBN layer and calibration parameter, the distribution over channels.
        shifted: For every kind of statistics the accuracy under each of ``config.tested_on()``.
        diverged: Whether the last training loss was not finite.
        device: Where it ran.
        seconds: Duration of the run.
        environment: Versions, platform and commit.
        created: When it ended, in UTC.
        facts: What else the numbers depend on, such as digests of images and weights.
    """

    config: RunConfig
    epochs: tuple[Epoch, ...]
    channel_mean_std: dict[str, Number]
    calibration: dict[str, dict[str, dict[str, Number]]]
    shifted: dict[str, dict[str, float]]
    diverged: bool
    device: str
    seconds: float
    environment: dict[str, str | None]
    created: str
    facts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.epochs or self.epochs[-1].test_accuracy is None:
            raise ValueError("its last epoch was not tested")
        for accuracies in self.shifted.values():
            if set(accuracies) != set(self.config.tested_on()):
                raise ValueError("its conditions are not those of its config")
            for accuracy in accuracies.values():
                _check_share(accuracy)

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch."""
        accuracy = self.epochs[-1].test_accuracy
        assert accuracy is not None
        return accuracy


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@cache
def environment() -> dict[str, str | None]:
    """Versions, platform and threads, and the commit of this library if it is a checkout."""
    packages = ("torch", "torchvision", "timm", "accelerate", "torchmetrics")
    return {
        "rbnorm": rbnorm.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # what a run does not need may be missing
        return None


def _commit() -> str | None:
    here = Path(__file__)
    git = ("git", "-C", str(here.parent))
    try:
        # an installed copy inside some other project's repository is not tracked by it
        subprocess.run((*git, "ls-files", "--error-unmatch", here.name), check=True, **_PIPES)
        described = subprocess.run(
            (*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
            check=True,
            **_PIPES,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("RBNORM_COMMIT")  # of a copy of the checkout on another machine
    return str(described.stdout).strip()


@dataclass(frozen=True)
class Failure:
    """A run that raised an error.

    Attributes:
        config: What was run.
        error: The error, in one line.
        trace: Where it was raised.
        environment: Versions, platform and commit.
        created: When, in UTC.
    """

    config: RunConfig
    error: str
    trace: str
    environment: dict[str, str | None]
    created: str

    @classmethod
    def of(cls, config: RunConfig, error: Exception) -> "Failure":
        """What is kept of a run that raised this error just now."""
        said = f"{type(error).__name__}: {first_line(error)}"
        return cls(config, said, "".join(format_exception(error)), environment(), now())
