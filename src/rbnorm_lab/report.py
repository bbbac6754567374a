"""The page of a study: a function of its records."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from rbnorm_lab import analysis, plots
from rbnorm_lab.records import Record
from rbnorm_lab.studies.words import chinese
from rbnorm_lab.templates import PAGE, environments, render, write_page


def write_report(records: Sequence[Record], out: Path, command: str) -> None:
    """Draw ``report.html`` and the figures' files; each replaces its predecessor atomically.

    Args:
        records: The study's records, at least one.
        out: The folder to write to.
        command: The command line that makes this page again.
    """
    write_page(
        lambda narrow: plots.figures(records, narrow=narrow),
        lambda drawn: page(records, command, drawn),
        out,
        chinese,
        files=["accuracy"],
    )


def page(records: Sequence[Record], command: str, figures: dict[str, Markup]) -> str:
    """The page as text."""
    rows = analysis.summarise(records)
    ends = [end for row in rows if row.gain for end in (row.gain.mean, *(row.gain.interval or ()))]
    return render(
        PAGE,
        rows=rows,
        answer=analysis.answer(rows),
        reach=max(map(abs, ends), default=0) or 1,
        figures=figures,
        config=records[0].config,
        records=records,
        environments=environments(records),
        command=command,
        with_margin=analysis.with_margin,
        with_interval=analysis.with_interval,
        p_value=analysis.p_value,
    )
