"""The page of a study: a function of its records."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from rbnorm.files import replace
from rbnorm.lab import analysis, plots
from rbnorm.lab.records import Record
from rbnorm.lab.templates import render

PAGE = "report.html"


def write_report(records: Sequence[Record], out: Path, command: str) -> None:
    """Draw ``report.html`` and the figures' files; each replaces its predecessor atomically.

    Args:
        records: The study's records, at least one.
        out: The folder to write to.
        command: The command line that makes this page again.
    """
    figures = plots.figures(records)
    replace(out / PAGE, page(records, command, figures).encode())
    for suffix in ("svg", "png"):
        replace(out / f"accuracy.{suffix}", plots.picture(figures["accuracy"], suffix))


def page(records: Sequence[Record], command: str, figures: dict[str, Figure]) -> str:
    """The page as text."""
    rows = analysis.summarise(records)
    return render(
        PAGE,
        rows=rows,
        answer=analysis.answer(rows),
        figures={name: Markup(plots.svg(figure, name)) for name, figure in figures.items()},
        config=records[0].config,
        records=records,
        environments=environments(records),
        command=command,
        with_margin=analysis.with_margin,
        with_interval=analysis.with_interval,
        p_value=analysis.p_value,
    )


def environments(records: Sequence[Record]) -> dict[str, str]:
    """Every fact of the environment, with all its values where runs were made in several."""
    facts: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in {**record.environment, "device": record.device}.items():
            facts.setdefault(name, {})[value or "unknown"] = None
    return {name: ", ".join(values) for name, values in facts.items()}
