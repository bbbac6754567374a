"""The page of a diagnosis: one file with everything in it, its plotting library too."""

import json
import math
from dataclasses import asdict, dataclass
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, Final

from markupsafe import Markup

import rbnorm
from rbnorm.diagnosis.result import COLUMNS
from rbnorm_lab.cases import CASES, Extreme
from rbnorm_lab.records import environment
from rbnorm_lab.templates import render
from rbnorm_lab.text import Text
from rbnorm_lab.verdict import accuracy, needs, points, recommended, remedy_name, verdict

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


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    Attributes:
        result: The diagnosis.
        said: Its findings in sentences.
        extremes: Where each of the four cases is strongest.
        remedies: What was tried against the loss on the second data set; None without one.
        title: Name of the model.
        command: The command line that makes this page again.
    """

    result: rbnorm.Diagnosis
    said: list[Text]
    extremes: list[Extreme]
    remedies: rbnorm.Remedies | None
    title: str
    command: str


def write_page(report: Report) -> str:
    """The page as text."""
    folder = files("rbnorm_lab")
    script = (folder / "diagnosis.js").read_text(encoding="utf-8")
    plotly = (folder / "vendor" / "plotly-basic.min.js").read_text(encoding="utf-8")
    remedies = report.remedies
    return render(
        "diagnosis.html",
        plotly=Markup(plotly.replace("</script", "<\\/script")),
        script=Markup(script),
        data=Markup(_embedded(page_data(report.result))),
        result=report.result,
        said=report.said,
        extremes=[SimpleNamespace(**extreme.drawn()) for extreme in report.extremes],
        remedies=remedies,
        rows=_rows(remedies) if remedies else [],
        words=_measures(remedies),
        verdict=lines(report),
        cases=CASES,
        title=Text(
            f"What batch statistics cost {report.title}, and what wins it back",
            f"批统计量让 {report.title} 损失多少，又如何补救",
        ),
        command=report.command,
        environment=environment(),
    )


def lines(report: Report) -> list[Text]:
    """The answer in a few lines."""
    if report.remedies is not None:
        return verdict(report.remedies)
    return [
        Text(
            "How often the statistics are wrong is below; what that costs shows only on a second "
            "data set: give one with --shifted.",
            "统计量在何处偏离见下文；代价多大要有第二个数据集才能看出：用 --shifted 指定。",
        )
    ]


def _measures(remedies: rbnorm.Remedies | None) -> dict[str, Text]:
    known = remedies is not None and math.isfinite(remedies.unchanged.second.value)
    kind = Text("accuracy, %", "准确率，%") if known else Text("agreement, %", "一致率，%")
    return {
        "first": Text(f"first data: {kind.en}", f"第一个数据集：{kind.zh}"),
        "second": Text(f"second data: {kind.en}", f"第二个数据集：{kind.zh}"),
    }


def _rows(remedies: rbnorm.Remedies) -> list[dict[str, Any]]:
    """The table's rows; agreement with the unchanged model where there are no labels."""
    labelled = math.isfinite(remedies.unchanged.second.value)
    best = recommended(remedies)
    rows = []
    for row in remedies.rows:
        first, second = (
            (accuracy(row.first), accuracy(row.second))
            if labelled
            else tuple(f"{100 * share:.1f}" for share in row.agreement)
        )
        shown = row.second.value if labelled else row.agreement[1]
        rows.append(
            {
                "name": remedy_name(row),
                "first": first,
                "second": second,
                "width": round(100 * shown),
                "loss": row.difference.high < 0,
                "difference": points(row.difference) if row is not remedies.unchanged else "",
                "needs": needs(row),
                "passes": f"{row.passes:.3g}",
                "weight": row.weight,
                "best": row is best,
            }
        )
    return rows


def page_data(result: rbnorm.Diagnosis) -> dict[str, Any]:
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
            }
            for layer in result.layers
        ],
        "second": {
            layer.layer or "(the layer)": {name: layer.values.get(name) for name in COLUMNS}
            for layer in (result.shifted.layers if result.shifted else ())
        },
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
