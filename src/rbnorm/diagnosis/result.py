"""The typed result of a diagnosis, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rbnorm.diagnosis.images import ImageShift
from rbnorm.models.report import Table, finite, paragraph, percent, table

SCHEMA = 2
COLUMNS = (
    "mean_offset",
    "log_var_ratio",
    "mean_below",
    "mean_above",
    "var_below",
    "var_above",
    "between_share",
)


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer.

    Attributes:
        layer: Its name in the model, the first one if it has several.
        kind: The name of its class.
        channels: C.
        instances: Instances it saw, over all its calls; 0 if it was not reached.
        calls: How often it was called.
        nonfinite: Pairs of instance and channel whose mean or variance is not finite; they are left
            out of everything else.
        values: Numbers of the whole layer, NaN where one is not defined. What they mean stands in
            :func:`rbnorm.diagnose`.
        per_channel: The same for every channel, (C,) in float64, as far as channels have it.
    """

    layer: str
    kind: str
    channels: int
    instances: int
    calls: int
    nonfinite: int
    values: Mapping[str, float]
    per_channel: Mapping[str, Tensor] = field(repr=False)

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @property
    def row(self) -> dict[str, Any]:
        """Everything but the channels, under the names of the table's columns."""
        return {
            "layer": self.layer,
            "kind": self.kind,
            **{name: self.values[name] for name in COLUMNS},
            "channels": self.channels,
            "instances": self.instances,
            "calls": self.calls,
            "nonfinite": self.nonfinite,
            **{name: value for name, value in self.values.items() if name not in COLUMNS},
        }


@dataclass(frozen=True, repr=False)
class Diagnosis(Table):
    """What :func:`rbnorm.diagnose` found.

    Attributes:
        layers: In the order of the model.
        batches: Number of batches.
        shifted: The same for the shifted batches, or None.
        images: How far the shifted images themselves lie from the others, before any layer; None
            without shifted batches, or where the model's inputs have no positions.
    """

    layers: tuple[LayerDiagnosis, ...]
    batches: int
    shifted: Diagnosis | None = field(default=None, repr=False)
    images: ImageShift | None = None

    def __getitem__(self, layer: str) -> LayerDiagnosis:
        for found in self.layers:
            if found.layer == layer:
                return found
        raise KeyError(f"no layer {layer!r}; there are {', '.join(d.layer for d in self.layers)}")

    @property
    def unreached(self) -> tuple[str, ...]:
        """The layers that no batch reached."""
        return tuple(d.layer for d in self.layers if not d.instances)

    def rows_of_table(self) -> list[dict[str, Any]]:
        """One row per layer, in the order of the model."""
        return [layer.row for layer in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """Everything, the channels too, as JSON has it: None for what is not finite."""
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "batches": self.batches,
            "layers": [
                {
                    **layer.row,
                    "per_channel": {k: v.tolist() for k, v in layer.per_channel.items()},
                }
                for layer in self.layers
            ],
        }
        if self.shifted is not None:
            found["shifted"] = self.shifted.to_dict()
        if self.images is not None:
            found["images"] = {**vars(self.images), "moved": self.images.moved}
        return finite(found)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        names = ("mean_below", "mean_above", "var_below", "var_above", "between_share")
        header = ("layer", "< mean", "> mean", "< var", "> var", "between")
        layers = (self.shifted or self).layers
        rows = [(d.layer or d.kind, *(percent(d[name]) for name in names)) for d in layers]
        of = "" if self.shifted is None else ", on the second data"
        said = [] if self.images is None else [paragraph(self.images.sentence)]
        what = f"In % of the pairs of instance and channel, and of the variance{of}:"
        return "\n".join([*said, paragraph(what), table(header, rows)])


def mean(values: Tensor) -> float:
    """The mean over the channels where a number is defined; NaN if it is nowhere."""
    return float(values[~values.isnan()].mean())
