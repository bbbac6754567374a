"""What one run at full size is: a run's config and the schedule around it."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from rbnorm.lab.config import RunConfig
from rbnorm.lab.errors import UsageError

LR_BATCH_SIZE: Final = 256
"""The batch size that the learning rate is for; other batch sizes scale it in proportion."""
MOMENTUM: Final = 0.9


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with momentum and a learning rate divided by 10 every few epochs.

    This is the recipe of ResNet on ImageNet, with which the paper trains RBN: learning rate 0.1 at
    batch size 256, momentum 0.9, weight decay 1e-4 on all parameters, the calibration included.

    Attributes:
        run: The data, the model, the norm and the optimiser's numbers.
        accumulate: Forward passes whose gradients make one step.
        decay_every: Epochs after which the learning rate is divided by 10.
        ema: Decay of the exponential moving average of the weights, or None for no average.
        sync_norm: Take batch statistics over all processes.

    Raises:
        UsageError: A value is out of range.
    """

    run: RunConfig
    accumulate: int = 1
    decay_every: int = 30
    ema: float | None = None
    sync_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("accumulate", "decay_every"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name.replace('_', ' ')} must be at least 1, not {getattr(self, name)}"
                )
        if self.run.seed < 0:
            raise UsageError(f"seed must be at least 0, not {self.run.seed}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema must be between 0 and 1, not {self.ema}")
        if self.run.batch_size % (self.run.processes * self.accumulate):
            raise UsageError(
                f"batch size {self.run.batch_size} must be a multiple of processes times passes, "
                f"{self.run.processes} x {self.accumulate}"
            )

    @property
    def share(self) -> int:
        """Images of one forward pass in one process, over which unsynchronised norms normalise."""
        return self.run.batch_size // (self.run.processes * self.accumulate)

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.run.lr / 10.0 ** (epoch // self.decay_every)

    def identity(self) -> dict[str, Any]:
        """Everything that the weights at a step depend on, and nothing else.

        How many epochs follow, who loads the images and where a folder of images lies is not part
        of it.
        """
        values = asdict(self)
        run = values.pop("run")
        for name in ("epochs", "workers"):
            del run[name]
        return {**run, **values, "data": self.run.data.partition(":")[0]}


def derive(seed: int, *place: int) -> int:
    """A seed for one place in a run: statistically independent of those of all other places."""
    return int(np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64)[0])
