"""The one way from a template beside this module to a page, and from a page to files.

The page of a study is a list of sections, which any study may add to.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rbnorm.models.files import replace
from rbnorm_lab import plots
from rbnorm_lab.records import Record
from rbnorm_lab.text import Text

PAGE: Final = "report.html"
_TEMPLATES = Environment(
    loader=PackageLoader("rbnorm_lab", "."), autoescape=True, undefined=StrictUndefined
)


Cell = str | Text


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        id: Its name in the page.
        head: The columns' names; none for a table of facts, whose first column is the head.
        rows: The cells.
        names: How many of the first columns are names.
        title: What stands above it.
        kind: A further class, for its style.
    """

    id: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    names: int = 1
    title: Text | None = None
    kind: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading; None to go on with the one before.
        figure: Name of a figure and what draws it, called with whether it is for a phone.
        caption: What stands below the figure.
        tables: The tables.
        note: What stands below these.
        lines: A list of sentences.
        folded: Whether the reader opens it.
    """

    title: Text | None
    figure: tuple[str, Callable[[bool], Figure]] | None = None
    caption: Text | None = None
    tables: Sequence[Table] = ()
    note: Text | None = None
    lines: Sequence[Text] = ()
    folded: bool = False


def render(template: str, **values: Any) -> str:
    """A page as text: values are escaped, and a value that the template lacks is an error."""
    return _TEMPLATES.get_template(template).render(**values)


def write_page(
    out: Path, sections: Sequence[Section], translate: Callable[[str], str], **values: Any
) -> None:
    """Write ``report.html`` and figures as files of their own; each replaces its predecessor whole.

    Args:
        out: The folder.
        sections: What was found.
        translate: What a text in a drawing is in Chinese.
        values: What else the template of a study's page shows.
    """
    draws = dict(section.figure for section in sections if section.figure)
    figures = {name: draw(False) for name, draw in draws.items()}
    drawn = {
        name: _drawing(figures[name], name, "wide", translate)
        + _drawing(draw(True), f"{name}-narrow", "narrow", translate)
        for name, draw in draws.items()
    }
    page = render("study.html", sections=sections, drawn=drawn, **values)
    replace(out / PAGE, page.encode())
    for name, figure in figures.items():
        for suffix in ("svg", "png"):
            replace(out / f"{name}.{suffix}", plots.picture(figure, suffix))


def _drawing(figure: Figure, name: str, width: str, translate: Callable[[str], str]) -> Markup:
    texts = re.compile(r"(?<=>)[^<>]+(?=</text>)")
    english = plots.svg(figure, name)
    chinese = texts.sub(lambda text: translate(text[0]), plots.svg(figure, f"{name}-zh"))
    return Markup(
        f'<div class="drawing {width}"><div lang="en">{english}</div>'
        f'<div lang="zh-Hans">{chinese}</div></div>'
    )


def environments(records: Sequence[Record]) -> dict[str, str]:
    """Every fact of the environment, with all its values where runs were made in several."""
    facts: dict[str, dict[str, None]] = {}
    for record in records:
        own = {**record.environment, "device": record.device, **record.facts}
        for name, value in own.items():
            facts.setdefault(name, {})[value or "unknown"] = None
    return {name: ", ".join(values) for name, values in facts.items()}
