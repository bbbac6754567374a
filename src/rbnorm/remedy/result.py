"""The typed result of trying remedies, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rbnorm.diagnosis.scores import Interval
from rbnorm.models.report import Table, finite, number, paragraph, percent, table

SCHEMA = 3
_ENDS = ("low", "high")


@dataclass(frozen=True)
class Remedy:
    """One remedy and what came of it.

    Attributes:
        name: In words.
        kind: "unchanged", "moments", "re-estimated", "test-batch", "mixed", "tent" or "fine-tuned".
        first: Mean score on the first data set with its interval; the accuracy, unless another
            metric was given. NaN without labels.
        second: The same on the second data set.
        difference: Score on the second data set minus the unchanged model's, instance by instance.
        agreement: Share of predictions on each data set that are the unchanged model's.
        confidence: Mean highest probability on each.
        needs_labels: Labelled training images are needed.
        needs_data: Unlabelled images of the second data set are needed before the first prediction.
        needs_batches: Predictions depend on the other images of a batch.
        passes: Passes over a data set that it takes before, or beside, the predictions.
        seconds: What trying it took.
        batch_size: Of the test batches; None where predictions do not depend on batches.
        weight: Of the test batch in the mixture of statistics.
    """

    name: str
    kind: str
    first: Interval
    second: Interval
    difference: Interval
    agreement: tuple[float, float]
    confidence: tuple[float, float]
    seconds: float
    needs_labels: bool = False
    needs_data: bool = False
    needs_batches: bool = False
    passes: float = 0
    batch_size: int | None = None
    weight: float | None = None

    @property
    def row(self) -> dict[str, Any]:
        """Everything, under the names of the table's columns."""
        plain = "needs_labels needs_data needs_batches passes kind batch_size weight seconds"
        accuracies = {"accuracy_first": self.first, "accuracy_second": self.second}
        pairs = {"agreement": self.agreement, "confidence": self.confidence}
        return {
            "remedy": self.name,
            **{name: accuracy.value for name, accuracy in accuracies.items()},
            **dict(zip(("difference", "low", "high"), self.difference, strict=True)),
            **{name: getattr(self, name) for name in plain.split()},
            **{f"{n}_{end}": getattr(a, end) for n, a in accuracies.items() for end in _ENDS},
            **{f"{n}_first": first for n, (first, _) in pairs.items()},
            **{f"{n}_second": second for n, (_, second) in pairs.items()},
        }


@dataclass(frozen=True, repr=False)
class Remedies(Table):
    """What :func:`rbnorm.remedies` found: the unchanged model, then the others, the best first.

    Attributes:
        rows: The remedies.
        instances: Instances of the first and of the second data set.
        skipped: By their names, why remedies were not tried, or failed.
        notes: What a reader must know of the data, in sentences.
    """

    rows: tuple[Remedy, ...]
    instances: tuple[int, int]
    skipped: Mapping[str, str] = field(default_factory=dict)
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

    def rows_of_table(self) -> list[dict[str, Any]]:
        """One row per remedy, the unchanged model first."""
        return [row.row for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it: None for what is not finite."""
        found = {
            "schema": SCHEMA,
            "instances": self.instances,
            "skipped": dict(self.skipped),
            "notes": self.notes,
            "remedies": self.rows_of_table(),
        }
        return finite(found)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        header = ("remedy, in % of the second data", "batch", "right", "won [95 % interval]")
        lines = [table(header, map(_line, self.rows))]
        lines += [paragraph(f"Not tried: {name}: {why}.") for name, why in self.skipped.items()]
        return "\n".join([*lines, *(paragraph(f"Note: {note}.") for note in self.notes)])


def _line(row: Remedy) -> tuple[str, ...]:
    value, low, high = (percent(share, "+.1f") for share in row.difference)
    return (
        row.name.removesuffix(f", batches of {row.batch_size}"),
        number(row.batch_size, "d"),
        percent(row.second.value),
        "" if row.kind == "unchanged" else f"{value} [{low}, {high}]",
    )
