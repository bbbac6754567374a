"""What docs/results.md says is what the committed records say."""

import shutil
from pathlib import Path

import pytest

from rbnorm_cli.main import main
from rbnorm_cli.names import study_names
from rbnorm_cli.parser import make_parser
from rbnorm_lab.studies.answer import NOT_RUN
from tools.marks import marked
from tools.results_page import CAMVID, CIFAR10, PAGES, filled
from tools.results_page import answers as all_answers
from tools.results_table import NAME, READMES, table

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The answer of every study, drawn anew from a copy of the records."""
    out = tmp_path_factory.mktemp("results")
    for name in ("records.jsonl", "domains.jsonl", "bench"):
        source = ROOT / "results" / "studies" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, out / name)
    return out


def flat(text):
    return " ".join(word for line in text.splitlines() for word in line.removeprefix("> ").split())


def test_every_answer_stands_on_the_page(answers, capsys):
    assert main(["study", "all", "--no-run", "--out", str(answers)]) == 0
    said = flat(capsys.readouterr().out)
    page = flat((ROOT / "docs" / "results.md").read_text())
    for name in study_names(["all"]):
        answer = said.partition(f"{name}: ")[2].partition(" Report: ")[0]
        assert answer
        assert answer in page, name


def test_the_answer_on_domains_stands_on_the_page(answers, capsys):
    assert main(["study", "domains", "--no-run", "--out", str(answers)]) == 0
    answer = flat(capsys.readouterr().out).removeprefix("domains: ").partition(" Report: ")[0]
    assert answer in flat((ROOT / "docs" / "results.md").read_text())


def test_both_languages_boxes_are_drawn_from_the_records():
    said = all_answers(ROOT / "results")
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


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_of_the_readme_is_drawn_from_the_records(language):
    drawn = table(ROOT / "results" / "studies")[language]
    assert marked(READMES[language], NAME).strip() == drawn


def test_no_record_is_of_uncommitted_code():
    for path in (ROOT / "results").rglob("*.jsonl"):
        if path.name in ("records.jsonl", "gradients.jsonl"):
            assert "-dirty" not in path.read_text()
