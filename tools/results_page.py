"""The boxes of docs/results.md in both languages, from the records: python -m tools.results_page.

Under every heading that ends in the name of a study, as in ``## Cost (`cost`)``, the first box
becomes the answer that ``rbnorm study`` gives for the committed records.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rbnorm.files import replace
from rbnorm.lab.domains.answer import domains_answer
from rbnorm.lab.domains.page import NAME as DOMAINS
from rbnorm.lab.store import FailureStore, RecordStore
from rbnorm.lab.studies.answer import answer
from rbnorm.lab.studies.arms import Settings
from rbnorm.lab.studies.catalogue import CATALOGUE
from rbnorm.lab.studies.cost_page import cost_answer
from rbnorm.lab.studies.costs import COST, load_costs
from rbnorm.lab.studies.results import collect
from rbnorm.lab.studies.tuning import Rates
from rbnorm.lab.text import Text
from rbnorm_cli.parser import make_parser
from tools.results_table import ROOT, domain_results

PAGES: Final = {
    "en": ROOT / "docs" / "results.md",
    "zh": ROOT / "docs" / "zh" / "results.md",
}
_SECTION: Final = re.compile(
    r"(^## [^\n]*[(（]`([\w-]+)`[)）]\n(?:(?!## |>)[^\n]*\n)*)((?:>[^\n]*\n)+)", re.MULTILINE
)


def answers(results: Path) -> dict[str, Text]:
    """The answer of each study by its name.

    Args:
        results: Folder of the records.
    """
    settings = Settings.of(vars(make_parser("").parse_args(["study", "all"])))
    records, failures = RecordStore(results).load(), FailureStore(results).load()
    found = {}
    for name, plan in CATALOGUE.items():
        study = plan(settings, Rates(settings, records, failures))
        found[name] = answer(study, collect(study, records, failures))
    found[COST] = cost_answer(load_costs(results))
    return {**found, DOMAINS: domains_answer(domain_results(results))}


def filled(page: str, said: Mapping[str, Text], language: str) -> str:
    """A page with these answers in its boxes.

    Raises:
        ValueError: A study's heading or its box is missing.
    """
    missing = said.keys() - {match[2] for match in _SECTION.finditer(page)}
    if missing:
        raise ValueError(f"there must be a heading and a box of {', '.join(sorted(missing))}")

    def box(match: re.Match[str]) -> str:
        text = getattr(said[match[2]], language)
        lines = textwrap.wrap(text, 96) if language == "en" else [text]
        return match[1] + "".join(f"> {line}\n" for line in lines)

    return _SECTION.sub(box, page)


def write(results: Path, pages: Mapping[str, Path] = PAGES) -> None:
    """Put the answers into the boxes of every language's page."""
    said = answers(results)
    drawn = {path: filled(path.read_text(), said, name) for name, path in pages.items()}
    for path, page in drawn.items():
        replace(path, page.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "studies")
    write(parser.parse_args().results)
