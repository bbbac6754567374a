"""The page of a diagnosis: one file with everything in it, its plotting library too."""

import json
import math
from dataclasses import dataclass
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, Final

from markupsafe import Markup

import rbnorm
from rbnorm_lab.cases import CASES, Extreme
from rbnorm_lab.records import environment
from rbnorm_lab.templates import render
from rbnorm_lab.text import Text
from rbnorm_lab.verdict import accuracy, needs, points, recommended, remedy_name, verdict

_MOST_NUMBERS: Final = 250_000  # of channels, about two megabytes
_ONE_LAYER: Final = "(the layer)"  # a model that is one has no name


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
    labelled = remedies is not None and math.isfinite(remedies.unchanged.second.value)
    return render(
        "diagnosis.html",
        plotly=Markup(plotly.replace("</script", "<\\/script")),
        script=Markup(script),
        data=Markup(page_data(report.result)),
        result=report.result,
        said=report.said,
        extremes=[SimpleNamespace(**extreme.drawn()) for extreme in report.extremes],
        remedies=remedies,
        rows=_rows(remedies, labelled) if remedies else [],
        measure=Text("accuracy, %", "准确率，%") if labelled else Text("agreement, %", "一致率，%"),
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
        kinds = {layer.kind for layer in report.result.layers}
        convertible = any("Representative" not in kind for kind in kinds)
        return verdict(report.remedies, convertible=convertible)
    return [
        Text(
            "How often the statistics are wrong is below; what that costs shows only on a second "
            "data set: give one with --shifted.",
            "统计量在何处偏离见下文；代价多大要有第二个数据集才能看出：用 --shifted 指定。",
        )
    ]


def _rows(remedies: rbnorm.Remedies, labelled: bool) -> list[dict[str, Any]]:
    """The table's rows; agreement with the unchanged model where there are no labels."""
    best = recommended(remedies)
    rows = []
    for row in remedies.rows:
        first, second = (f"{100 * share:.1f}" for share in row.agreement)
        if labelled:
            first, second = accuracy(row.first), accuracy(row.second)
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


def page_data(result: rbnorm.Diagnosis) -> str:
    """What the page's script draws; every k-th channel of a layer where there are very many."""
    found = result.to_dict()
    layers, second = found["layers"], found.get("shifted", {}).get("layers", [])
    for layer in (*layers, *second):
        layer["layer"] = layer["layer"] or _ONE_LAYER
    for layer in second:
        del layer["per_channel"]
    numbers = sum(len(v) for layer in layers for v in layer["per_channel"].values())
    step = max(1, math.ceil(numbers / _MOST_NUMBERS))
    for layer in layers:
        layer["per_channel"] = {name: v[::step] for name, v in layer["per_channel"].items()}
    data = {"step": step, "layers": layers, "second": {layer["layer"]: layer for layer in second}}
    text = json.dumps(_short(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # it stands inside a script element


def _short(value: Any) -> Any:
    """The same in four digits."""
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
