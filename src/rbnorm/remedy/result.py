"""The typed result of trying remedies, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbnorm.models.files import replace
from rbnorm.remedy.scores import Interval

if TYPE_CHECKING:
    import pandas

SCHEMA = 1


@dataclass(frozen=True)
class Remedy:
    """One remedy and what came of it.

    Attributes:
        name: In words.
        kind: "unchanged", "re-estimated", "test-batch", "mixed", "tent" or "fine-tuned".
        first: Mean score on the first data set with its interval; the accuracy, unless another
            metric was given. NaN without labels.
        second: The same on the second data set.
        difference: Score on the second data set minus the unchanged model's, instance by instance.
        difference_first: The same on the first data set: what the remedy costs there.
        loss: Cross-entropy in nats on the first and the second data set.
        agreement: Share of predictions on each that are the unchanged model's.
        confidence: Mean highest probability on each.
        needs_labels: Labelled training images are needed.
        needs_data: Unlabelled images of the second data set are needed before the first prediction.
        needs_batches: Predictions depend on the other images of a batch.
        passes: Passes over a data set that it takes before, or beside, the predictions.
        seconds: What trying it took.
        batch_size: Of the test batches; None where predictions do not depend on batches.
        weight: Of the test batch in the mixture of statistics.
        layers: Layers it changes; None for all.
    """

    name: str
    kind: str
    first: Interval
    second: Interval
    difference: Interval
    difference_first: Interval
    loss: tuple[float, float]
    agreement: tuple[float, float]
    confidence: tuple[float, float]
    needs_labels: bool
    needs_data: bool
    needs_batches: bool
    passes: float
    seconds: float
    batch_size: int | None = None
    weight: float | None = None
    layers: tuple[str, ...] | None = None

    @property
    def row(self) -> dict[str, Any]:
        """Everything, under the names of the table's columns."""
        return {
            "remedy": self.name,
            "accuracy_first": self.first.value,
            "accuracy_second": self.second.value,
            "difference": self.difference.value,
            "low": self.difference.low,
            "high": self.difference.high,
            "needs_labels": self.needs_labels,
            "needs_data": self.needs_data,
            "needs_batches": self.needs_batches,
            "passes": self.passes,
            "kind": self.kind,
            "accuracy_first_low": self.first.low,
            "accuracy_first_high": self.first.high,
            "accuracy_second_low": self.second.low,
            "accuracy_second_high": self.second.high,
            "difference_first": self.difference_first.value,
            "difference_first_low": self.difference_first.low,
            "difference_first_high": self.difference_first.high,
            "loss_first": self.loss[0],
            "loss_second": self.loss[1],
            "agreement_first": self.agreement[0],
            "agreement_second": self.agreement[1],
            "confidence_first": self.confidence[0],
            "confidence_second": self.confidence[1],
            "batch_size": self.batch_size,
            "weight": self.weight,
            "layers": self.layers,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Remedies:
    """What :func:`rbnorm.remedies` found: the unchanged model, then the others, the best first.

    Attributes:
        rows: The remedies.
        instances: Instances of the first and of the second data set.
        named: The layers that the second data set moves the furthest by themselves.
        skipped: Names of the remedies that did not fit the budget.
        notes: What a reader must know of the data, in sentences.
    """

    rows: tuple[Remedy, ...]
    instances: tuple[int, int]
    named: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Remedy:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no remedy {name!r}; there are {', '.join(r.name for r in self.rows)}")

    @property
    def unchanged(self) -> Remedy:
        """The model as it is."""
        return self.rows[0]

    @property
    def lost(self) -> float:
        """How much lower the unchanged model's score is on the second data set."""
        return self.unchanged.first.value - self.unchanged.second.value

    def helpful(self) -> tuple[Remedy, ...]:
        """The remedies whose interval of the difference lies above zero, the best first."""
        return tuple(row for row in self.rows[1:] if row.difference.low > 0)

    def to_frame(self) -> pandas.DataFrame:
        """One row per remedy, the unchanged model first; scores are fractions.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas  # noqa: PLC0415 - the library depends on torch alone
        except ImportError:
            raise ImportError("to_frame needs pandas: install it with pip install pandas") from None
        return pandas.DataFrame([row.row for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it: None for what is not finite."""
        return {
            "schema": SCHEMA,
            "instances": list(self.instances),
            "named": list(self.named),
            "skipped": list(self.skipped),
            "notes": list(self.notes),
            "remedies": [
                {name: _plain(value) for name, value in row.row.items()} for row in self.rows
            ],
        }

    def to_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file, whole or not at all."""
        text = json.dumps(self.to_dict(), allow_nan=False, indent=1)
        replace(Path(path), f"{text}\n".encode())


def ranked(rows: Sequence[Remedy]) -> tuple[Remedy, ...]:
    """The first row, then the others by their difference, those without one last."""
    first, *others = rows

    def order(row: Remedy) -> float:
        value = row.difference.value
        return math.inf if math.isnan(value) else -value

    return first, *sorted(others, key=order)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
