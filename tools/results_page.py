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
from typing import Final

from rbnorm_cli.main import main
from rbnorm_lab.studies.learnt import learnt, sentence
from rbnorm_lab.studies.results import Compared, Results
from rbnorm_lab.studies.sentences import NOT_RUN, answer
from rbnorm_lab.studies.words import chinese, close
from rbnorm_lab.text import Text, interval, joined, p_value, points
from tools import costs
from tools.marks import put
from tools.questions import QUESTIONS, Question
from tools.results_table import markdown
from tools.sources import (
    ROOT,
    SOURCES,
    STUDIES,
    TABLED,
    domain_results,
    results_of,
)

PAGES: Final = {
    "en": ROOT / "docs" / "results.md",
    "zh": ROOT / "docs" / "zh" / "results.md",
}
SUMMARY: Final = "summary"
ONE_LINE: Final = ("fine-tune", "networks")
"""Studies of which the page has a line each."""
_MOST_ROWS: Final = 9
_SHORT: Final = {
    "clean": Text("clean images", "干净图像"),
    "shifted": Text("corrupted images", "退化图像"),
    "iou": Text("mean IoU", "平均 IoU"),
    "target": Text("new domain", "新的域"),
}


def drawn(results: Path) -> dict[str, dict[str, str]]:
    """By language and mark what stands there.

    Args:
        results: Folder of the sources' folders.
    """
    found, networks = dict[str, Results](), list[Text]()
    for source in TABLED:
        for name, of in results_of(results / source.folder, source).items():
            found[name] = of
            if name in ("networks", "cifar"):
                named = {"whole batch": "cifar-resnet20"}
                networks += [sentence(named.get(g, g), runs) for g, runs in learnt(of).items()]
    found["domains"] = domain_results(results / STUDIES.folder)
    said = joined(networks, " ", "") if networks else NOT_RUN
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
