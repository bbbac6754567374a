"""What the READMEs and the docs tell people to type works."""

import re
import shlex
from glob import glob

import pytest
from processes import ROOT, python
from test_docs import blocks, named

from rbnorm_cli.parser import joined, make_parser

READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
PAGES = sorted([*READMES, *ROOT.glob("docs/*.md"), *ROOT.glob("docs/zh/*.md")])


def commands(path):
    """What a page tells people to type, comments away and continued lines joined."""
    text = path.read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?: {4})?((?:rbnorm|pip|make) .*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_both_readmes_have_the_same_code_and_links_of_the_method():
    english, chinese = ([re.sub(r" *#.*", "", b) for b in blocks(p, "python")] for p in READMES)
    assert english == chinese
    assert commands(READMES[0]) == commands(READMES[1])
    outside = [sorted(set(re.findall(r"https?://[^)\s]+", p.read_text()))) for p in READMES]
    assert outside[0] == outside[1]


def test_both_languages_give_the_same_advice():
    given = []
    for page in READMES:
        advice = page.read_text().split("<!-- when -->")[1].split("<!-- /when -->")[0]
        points = advice.split("\n- ")[1:]
        given.append([re.findall(r"docs/(?:zh/)?(\w[\w-]*)\.md", point) for point in points])
    assert given[0] == given[1]
    assert len(given[0]) == 6


def test_the_ten_lines_run_in_a_fresh_folder(tmp_path):
    (code,) = blocks(READMES[0], "python")
    # weights are not downloaded in tests, and a small image shows as much
    code = code.replace('weights="DEFAULT"', "weights=None").replace("224, 224", "64, 64")
    python("-W", "ignore", "-c", code, folder=tmp_path)


def shortened(words):
    """A comparison on fewer images and passes, so that it ends soon."""
    if words[0] != "compare":
        return words
    line = re.sub(r" --epochs \d+", "", " ".join(words))
    return [*line.split(), *("--limit", "96", "--epochs", "1")]


def test_the_commands_run_in_a_fresh_folder(tmp_path):
    typed = [words[1:] for words in commands(READMES[0]) if words[0] == "rbnorm"]
    assert [words[0] for words in typed] == ["explain", "compare", "compare", "diagnose"]
    for words in map(shortened, typed):
        files = [name for word in words for name in glob(word, root_dir=tmp_path) or [word]]
        python("-m", "rbnorm", *files, folder=tmp_path)
    pages = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*.html"))
    assert pages == [
        "rbnorm-compare/report.html",
        "rbnorm-diagnosis/report.html",
        "rbnorm-explain/explain.html",
    ]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_are_ones_that_the_command_line_takes(page):
    for words in commands(page):
        if words[0] == "rbnorm":
            line = words[1 : words.index(">") if ">" in words else None]
            make_parser("").parse_args(joined(line))


def test_extras_and_targets_exist():
    project, targets = (ROOT / "pyproject.toml").read_text(), (ROOT / "Makefile").read_text()
    for page in PAGES:
        for words in commands(page):
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", targets, re.MULTILINE), words
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(words) if words[0] == "pip" else ""):
                for name in extra.split(","):
                    assert re.search(rf"^{name} = \[", project, re.MULTILINE), words
