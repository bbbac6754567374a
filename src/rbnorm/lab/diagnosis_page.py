"""The page of a diagnosis: one file with everything in it, its plotting library too."""

import json
import math
from dataclasses import asdict
from importlib.resources import files
from typing import Any, Final

from markupsafe import Markup
from plotly.offline import get_plotlyjs

import rbnorm
from rbnorm.diagnosis.result import COLUMNS
from rbnorm.lab.conversion import Conversion
from rbnorm.lab.feature_maps import FeatureMaps
from rbnorm.lab.findings import CASES, percent
from rbnorm.lab.records import environment
from rbnorm.lab.templates import render

_MOST_NUMBERS: Final = 250_000  # of channels, about two megabytes
_CHANNEL: Final = (
    *COLUMNS,
    "output_mean",
    "class_correlation",
    "between_share_centred",
    "center_weight",
    "gate_mean",
    "gate_spread",
    "gain",
    "mean_shift",
    "shift",
)


def write_page(
    result: rbnorm.Diagnosis,
    said: list[str],
    change: Conversion,
    maps: FeatureMaps,
    *,
    title: str,
    command: str,
) -> str:
    """The page as text.

    Args:
        result: The diagnosis.
        said: Its findings in sentences.
        change: What a conversion changes.
        maps: Images and feature maps.
        title: Name of the model.
        command: The command line that makes this page again.
    """
    script = (files("rbnorm.lab") / "diagnosis.js").read_text(encoding="utf-8")
    return render(
        "diagnosis.html",
        plotly=Markup(get_plotlyjs()),
        script=Markup(script),
        data=Markup(_embedded(page_data(result, maps))),
        result=result,
        said=said,
        change=change,
        cases=CASES,
        percent=percent,
        number=number,
        title=title,
        command=command,
        environment=environment(),
    )


def page_data(result: rbnorm.Diagnosis, maps: FeatureMaps) -> dict[str, Any]:
    """What the page's script draws; every k-th channel of a layer where there are very many."""
    names = [n for n in _CHANNEL if any(n in layer.per_channel for layer in result.layers)]
    numbers = len(names) * sum(layer.channels for layer in result.layers)
    step = max(1, math.ceil(numbers / _MOST_NUMBERS))
    return {
        "step": step,
        "layers": [
            {
                **layer.row,
                "layer": layer.layer or "(the layer)",
                "batch_spread": [asdict(spread) for spread in layer.batch_spread],
                "per_channel": {
                    name: [_short(value) for value in layer.per_channel[name][::step].tolist()]
                    for name in names
                    if name in layer.per_channel
                },
                "maps": [asdict(channel) for channel in maps.layers.get(layer.layer, [])],
            }
            for layer in result.layers
        ],
        "images": maps.images,
    }


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _embedded(data: Any) -> str:
    """JSON that can stand inside a script element."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(item) for name, item in value.items()}
        if isinstance(value, list):
            return [finite(item) for item in value]
        return _short(value) if isinstance(value, float) else value

    text = json.dumps(finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def number(value: float | None) -> str:
    """For a table: three digits, or a dash where there is no number."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}".replace("-", "−")
