"""What docs/results.md says is what the committed records say."""

from dataclasses import replace
from pathlib import Path

import pytest

from rbnorm_cli.parser import make_parser
from rbnorm_lab.shift import CLEAN, TRAINED
from rbnorm_lab.store import Store
from rbnorm_lab.studies.sentences import NOT_RUN
from tools.marks import marked
from tools.results_page import CAMVID, CIFAR10, PAGES, answers, filled
from tools.results_table import NAME, READMES, accuracies, table

ROOT = Path(__file__).parents[2]


def test_both_languages_boxes_are_drawn_from_the_records():
    said = answers(ROOT / "results")
    for language, path in PAGES.items():
        assert filled(path.read_text(), said, language) == path.read_text()


@pytest.mark.parametrize("page", ["docs/studies.md", "docs/zh/studies.md"])
def test_the_commands_of_the_committed_runs_stand_on_the_page(page):
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    rbnorm study ")]
    shown = [vars(make_parser("").parse_args(x.split()[1:])) for x in lines if " --data " in x]
    for source in (CIFAR10, CAMVID):
        assert vars(make_parser("").parse_args(source.command)) in shown


def test_a_page_without_a_studys_box_is_refused():
    with pytest.raises(ValueError, match="a heading and a box of cost"):
        filled("## Cost (`cost`)\n\nNo box.\n", {"cost": NOT_RUN}, "en")


def test_the_tables_of_both_readmes_are_drawn_from_the_records():
    drawn = table(ROOT / "results" / "studies")
    assert {language: marked(READMES[language], NAME).strip() for language in drawn} == drawn


def test_a_column_of_other_images_is_refused():
    records = list(Store(ROOT / "results" / "studies").records.values())
    (one, *_) = [record for record in records if TRAINED in record.shifted]
    expected = one.shifted[TRAINED][CLEAN]
    assert accuracies([one], TRAINED, CLEAN) == [expected]
    whole = replace(one, config=replace(one.config, shift="whole"))
    with pytest.raises(ValueError, match="must be of the same images"):
        accuracies([one, whole], TRAINED, CLEAN)


def test_no_record_is_of_uncommitted_code():
    for path in (ROOT / "results").rglob("*.jsonl"):
        if path.name == "records.jsonl":
            assert "-dirty" not in path.read_text()
