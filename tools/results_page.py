"""The studies' pages and the boxes of docs/results.md: python -m tools.results_page.

Under every heading that ends in the name of a study, as in ``## Cost (`cost`)``, the first box
becomes the answer that ``rbnorm study`` gives for the committed records, in either language. The
names of studies on other images than Fashion-MNIST end in those.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from rbnorm.models.files import replace
from rbnorm_cli.main import main
from rbnorm_cli.parser import make_parser
from rbnorm_lab.names import study_names
from rbnorm_lab.store import Store
from rbnorm_lab.studies.command import Plans
from rbnorm_lab.studies.learnt import Learnt, learnt, sentence
from rbnorm_lab.studies.results import Results, collect
from rbnorm_lab.studies.sentences import NOT_RUN, answer
from rbnorm_lab.studies.study import Settings
from rbnorm_lab.text import Text, joined
from tools.results_table import ROOT, domain_results

PAGES: Final = {
    "en": ROOT / "docs" / "results.md",
    "zh": ROOT / "docs" / "zh" / "results.md",
}


class Source(NamedTuple):
    """A folder of committed records, with the command that made them."""

    folder: str
    command: tuple[str, ...]
    suffix: str = ""


STUDIES: Final = Source("studies", ("study", "all"))
CIFAR10: Final = Source(
    "cifar10",
    (
        *("study", "batch-size", "init", "fine-tune", "networks", "--data", "cifar10-jpeg"),
        *("--seeds", "5", "--clean-only", "--trace", "--limit", "10000", "--test-limit", "2000"),
        *("--epochs", "1", "--rates", "0.05", "0.2", "--tuning-seeds", "1"),
        *("--networks", "small:timm:mobilenetv3_small_050", "small:timm:regnetx_002"),
    ),
    "-cifar10",
)
CAMVID: Final = Source(
    "camvid",
    (
        *("study", "segmentation", "--data", "camvid", "--model", "lraspp-mobilenet-v2"),
        *("--image-size", "72", "--batch-size", "8", "--epochs", "3", "--seeds", "5"),
        *("--rates", "0.004", "0.02", "0.1", "--tuning-seeds", "1"),
    ),
)
SOURCES: Final = (STUDIES, CIFAR10, CAMVID)
_SECTION: Final = re.compile(
    r"(^## [^\n]*[(（]`([\w-]+)`[)）]\n(?:(?!## |>)[^\n]*\n)*)((?:>[^\n]*\n)+)", re.MULTILINE
)


def answers(results: Path) -> dict[str, Text]:
    """The answer of each study by its name.

    Args:
        results: Folder of the sources' folders.
    """
    found, networks = {}, []
    for source in SOURCES:
        for name, of in _results(results / source.folder, source).items():
            found[name + source.suffix] = answer(of)
            if name == "networks":
                networks += [_on(source, one) for one in learnt(of)]
    found["domains"] = answer(domain_results(results / STUDIES.folder))
    found["learnt"] = joined(map(sentence, networks), " ", "") if networks else NOT_RUN
    return found


def _on(source: Source, of: Learnt) -> Learnt:
    """With a group that tells it from that of the same network on other images."""
    return (
        dataclasses.replace(of, group=f"{of.group}, {source.suffix[1:]}") if source.suffix else of
    )


def _results(folder: Path, source: Source) -> dict[str, Results]:
    options = make_parser("").parse_args(source.command)
    plans = Plans(study_names(options.names), Settings.of(vars(options)), Store(folder))
    return {study.name: collect(study, plans.store) for study in plans.studies()}


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
        lines = textwrap.wrap(text, 96, break_on_hyphens=False) if language == "en" else [text]
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
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    folder = parser.parse_args().results
    for source in SOURCES:
        main([*source.command, "--no-run", "--out", str(folder / source.folder)])
    write(folder)
