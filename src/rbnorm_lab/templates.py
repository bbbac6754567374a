"""The one way from a template beside this module to a page, and from a page to files."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from rbnorm.models.files import replace
from rbnorm_lab import plots

PAGE: Final = "report.html"
_TEMPLATES = Environment(
    loader=PackageLoader("rbnorm_lab", "."), autoescape=True, undefined=StrictUndefined
)


class Made(Protocol):
    """A record of something that was run."""

    @property
    def environment(self) -> dict[str, str | None]:
        """Versions, platform and commit."""

    @property
    def device(self) -> str:
        """Where it ran."""


def render(template: str, **values: Any) -> str:
    """A page as text: values are escaped, and a value that the template lacks is an error."""
    return _TEMPLATES.get_template(template).render(**values)


def write_page(
    draw: Callable[[bool], Mapping[str, Figure]],
    page_with: Callable[[dict[str, Markup]], str],
    out: Path,
    translate: Callable[[str], str],
    files: Sequence[str] | None = None,
) -> None:
    """Write ``report.html`` and figures as files of their own; each replaces its predecessor whole.

    Args:
        draw: The figures by name; called with whether they are for a window as narrow as a phone's.
        page_with: The page as text, given the drawings by name.
        out: The folder.
        translate: What a text in a drawing is in Chinese.
        files: The figures that get files; None for all.
    """
    figures, narrow = draw(False), draw(True)
    drawn = {
        name: _drawing(figure, name, "wide", translate)
        + _drawing(narrow[name], f"{name}-narrow", "narrow", translate)
        for name, figure in figures.items()
    }
    replace(out / PAGE, page_with(drawn).encode())
    for name in figures if files is None else files:
        for suffix in ("svg", "png"):
            replace(out / f"{name}.{suffix}", plots.picture(figures[name], suffix))


def _drawing(figure: Figure, name: str, width: str, translate: Callable[[str], str]) -> Markup:
    texts = re.compile(r"(?<=>)[^<>]+(?=</text>)")
    english = plots.svg(figure, name)
    chinese = texts.sub(lambda text: translate(text[0]), plots.svg(figure, f"{name}-zh"))
    return Markup(
        f'<div class="drawing {width}"><div lang="en">{english}</div>'
        f'<div lang="zh-Hans">{chinese}</div></div>'
    )


def environments(records: Sequence[Made]) -> dict[str, str]:
    """Every fact of the environment, with all its values where runs were made in several."""
    facts: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in {**record.environment, "device": record.device}.items():
            facts.setdefault(name, {})[value or "unknown"] = None
    return {name: ", ".join(values) for name, values in facts.items()}
