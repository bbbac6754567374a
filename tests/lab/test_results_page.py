"""What docs/results.md says is what the committed records say."""

from pathlib import Path

import pytest

from rbnorm_cli.parser import make_parser
from rbnorm_lab.store import Store
from rbnorm_lab.studies.results import value_of
from tools.marks import marked
from tools.results_page import PAGES, drawn, write
from tools.results_table import NAME, table
from tools.results_table import PAGES as TABLED
from tools.sources import CAMVID, CIFAR, CIFAR10

ROOT = Path(__file__).parents[2]


def test_both_languages_tables_and_boxes_are_drawn_from_the_records():
    for language, shown in drawn(ROOT / "results").items():
        for name, text in shown.items():
            assert marked(PAGES[language], name).strip() == text, (language, name)


@pytest.mark.parametrize("page", ["docs/studies.md", "docs/zh/studies.md"])
def test_the_commands_of_the_committed_runs_stand_on_the_page(page):
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    rbnorm study ")]
    shown = [vars(make_parser("").parse_args(x.split()[1:])) for x in lines if " --data " in x]
    for source in (CIFAR, CIFAR10, CAMVID):
        assert vars(make_parser("").parse_args(source.command)) in shown


def test_a_page_without_a_studys_marks_is_refused(tmp_path, monkeypatch):
    page = tmp_path / "results.md"
    page.write_text("No marks.\n")
    monkeypatch.setattr("tools.results_page.drawn", lambda results: {"en": {"cost": "A table."}})
    with pytest.raises(ValueError, match=r"results\.md must have the marks <!-- cost -->"):
        write(ROOT / "results", {"en": page})
    assert page.read_text() == "No marks.\n"


def test_the_tables_of_both_readmes_are_drawn_from_the_records():
    drawn = table(ROOT / "results")
    for language, pages in TABLED.items():
        assert {marked(page, NAME).strip() for page in pages} == {drawn[language]}


def test_the_clean_accuracy_is_of_the_statistics_that_are_asked_for():
    records = Store(ROOT / "results" / "cifar").records.values()
    one = next(record for record in records if "test-batch-8" in record.shifted)
    assert value_of(one, "clean") == one.accuracy
    few = value_of(one, "clean", "test-batch-8")
    assert few == one.shifted["test-batch-8"]["clean"] != one.accuracy
    assert value_of(one, "clean", "test-batch") is None


def test_no_record_is_of_uncommitted_code():
    for path in (ROOT / "results").rglob("*.jsonl"):
        if path.name == "records.jsonl":
            assert "-dirty" not in path.read_text()
