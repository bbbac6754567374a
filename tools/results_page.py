"""The studies' pages, and what docs/results.md shows of them: python -m tools.results_page.

Between the marks of a study's name, as in ``<!-- cost -->``, stand its first comparisons as a
table, or the answer that ``rbnorm study`` gives where it has none; between those of ``summary`` the
first table of the page.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from rbnorm_cli.main import main
from rbnorm_cli.parser import make_parser
from rbnorm_lab.names import study_names
from rbnorm_lab.store import Store
from rbnorm_lab.studies.command import Plans
from rbnorm_lab.studies.learnt import Learnt, learnt, sentence
from rbnorm_lab.studies.results import Compared, Results, collect
from rbnorm_lab.studies.sentences import NOT_RUN, answer
from rbnorm_lab.studies.study import Settings
from rbnorm_lab.studies.words import chinese, close
from rbnorm_lab.text import Text, interval, joined, p_value, points
from tools import costs
from tools.marks import put
from tools.questions import QUESTIONS, Question
from tools.results_table import ROOT, domain_results, markdown

PAGES: Final = {
    "en": ROOT / "docs" / "results.md",
    "zh": ROOT / "docs" / "zh" / "results.md",
}
SUMMARY: Final = "summary"
ONE_LINE: Final = ("fine-tune", "networks")
"""Studies of which the page has a line each."""
_MOST_ROWS: Final = 8
_SHORT: Final = {
    "clean": Text("clean images", "干净图像"),
    "shifted": Text("corrupted images", "退化图像"),
    "iou": Text("mean IoU", "平均 IoU"),
    "target": Text("new domain", "新的域"),
}


class Source(NamedTuple):
    """A folder of committed records, with the command that made them."""

    folder: str
    command: tuple[str, ...]


STUDIES: Final = Source("studies", ("study", "all"))
CIFAR: Final = Source(
    "cifar",
    (
        *("study", "cifar", "--data", "cifar10-jpeg", "--model", "cifar-resnet20"),
        *("--batch-size", "128", "--epochs", "10", "--limit", "50000", "--seeds", "5"),
        *("--rates", "0.1", "0.2", "0.4", "--tuning-seeds", "1", "--tuning-epochs", "10"),
        *("--trace", "--mixed-precision", "bf16"),
    ),
)
CIFAR10: Final = Source(
    "cifar10",
    (
        *("study", "batch-size", "init", "fine-tune", "networks", "--data", "cifar10-jpeg"),
        *("--seeds", "5", "--clean-only", "--trace", "--limit", "10000", "--test-limit", "2000"),
        *("--epochs", "1", "--rates", "0.05", "0.2", "--tuning-seeds", "1"),
        *("--networks", "small:timm:mobilenetv3_small_050", "small:timm:regnetx_002"),
    ),
)
CAMVID: Final = Source(
    "camvid",
    (
        *("study", "segmentation", "--data", "camvid", "--model", "lraspp-mobilenet-v2"),
        *("--image-size", "72", "--batch-size", "8", "--epochs", "3", "--seeds", "5"),
        *("--rates", "0.004", "0.02", "0.1", "--tuning-seeds", "1"),
    ),
)
TABLED: Final = (STUDIES, CIFAR, CAMVID)
SOURCES: Final = (*TABLED, CIFAR10)
"""Of the last, the page has a line each."""


def drawn(results: Path) -> dict[str, dict[str, str]]:
    """By language and mark what stands there.

    Args:
        results: Folder of the sources' folders.
    """
    found, networks = {}, []
    for source in TABLED:
        for name, of in _results(results / source.folder, source).items():
            found[name] = of
            if name in ("networks", "cifar"):
                networks += [_named_by_network(source, one) for one in learnt(of)]
    found["domains"] = domain_results(results / STUDIES.folder)
    said = joined(map(sentence, networks), " ", "") if networks else NOT_RUN
    cost = costs.sentence(results / STUDIES.folder)
    shown = {name: of for name, of in found.items() if name not in ONE_LINE}
    return {
        language: {
            SUMMARY: _summary(found, language),
            **{name: _found(of, language) for name, of in shown.items()},
            "learnt": _boxed(said, language),
            "cost": _boxed(cost, language),
        }
        for language in PAGES
    }


def _named_by_network(source: Source, of: Learnt) -> Learnt:
    return dataclasses.replace(of, group="cifar-resnet20") if source is CIFAR else of


def _results(folder: Path, source: Source) -> dict[str, Results]:
    options = make_parser("").parse_args(source.command)
    plans = Plans(study_names(options.names), Settings.of(vars(options)), Store(folder))
    return {study.name: collect(study, plans.store) for study in plans.studies()}


def _found(results: Results, language: str) -> str:
    """The comparisons that were run, or the answer in a box."""
    compared = [c for c in (*results.primary, *results.others) if c.difference][:_MOST_ROWS]
    if not compared:
        return _boxed(answer(results), language)
    head = (
        Text("comparison", "比较"),
        Text("points", "百分点"),
        Text("95 % interval", "95 % 区间"),
        Text("how sure", "可靠程度"),
    )
    several = len(results.groups()) > 1
    return markdown(head, ([_named(c, several), *_cells(c)] for c in compared), language)


def _summary(found: Mapping[str, Results], language: str) -> str:
    head = (
        Text("question", "问题"),
        Text("answer", "回答"),
        Text("points", "百分点"),
        Text("95 % interval", "95 % 区间"),
        Text("how sure", "可靠程度"),
    )
    rows = ([q.question, q.answer, *_cells(_of(q, found[q.study]))] for q in QUESTIONS)
    return markdown(head, rows, language)


def _of(question: Question, results: Results) -> Compared:
    for compared in (*results.primary, *results.others):
        if dataclasses.replace(compared.comparison, called=None) == question.comparison:
            return compared
    raise LookupError(f"the study {question.study} has no such comparison as {question}")


def _named(compared: Compared, several: bool) -> Text:
    of = compared.comparison
    measure, group = _SHORT[of.measure], of.group if several else None
    t, c = of.sides
    en, zh = (f", {group}", f"，{chinese(group)}") if group else ("", "")
    return Text(
        f"{measure.en}{en}: {t.en} minus {c.en}",
        close(f"{measure.zh}{zh}：{t.zh}减{c.zh}").strip(),
    )


def _cells(compared: Compared) -> list[str | Text]:
    if compared.difference is None:
        return ["–", "–", NOT_RUN]
    estimate = compared.difference.estimate
    count = len(estimate.values)
    en, zh = ("pair", "对") if estimate.blocks else ("seed", "个种子")
    en += "s" * (count != 1)
    if compared.together:
        p = p_value(compared.adjusted)
        p = p if p.startswith("<") else f"= {p}"
        sure = Text(f"primary, p {p}, {count} {en}", f"主要比较，p {p}，{count} {zh}")
    else:
        sure = Text(f"exploratory, {count} {en}", f"探索性，{count} {zh}")
    return [points(estimate.mean), interval(estimate), sure]


def _boxed(text: Text, language: str) -> str:
    said = getattr(text, language)
    lines = textwrap.wrap(said, 118, break_on_hyphens=False) if language == "en" else [said]
    return "\n".join(f"> {line}" for line in lines)


def write(results: Path, pages: Mapping[str, Path] = PAGES) -> None:
    """Put what was found between the marks of every language's page."""
    shown = drawn(results)
    for language, path in pages.items():
        for name, text in shown[language].items():
            put(path, name, f"\n\n{text}\n\n")


if __name__ == "__main__":
    folder = ROOT / "results"
    for source in SOURCES:
        main([*source.command, "--no-run", "--out", str(folder / source.folder)])
    write(folder)
