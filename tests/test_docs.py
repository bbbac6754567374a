"""The docs: code runs, places and links are there, and both languages have the same code."""

import ast
import re
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from processes import ROOT, python

DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

from places import ROOT as PLACES_ROOT  # noqa: E402
from places import find  # noqa: E402

PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("zh/*.md")]
TAUGHT = ("index", "quickstart", "finetune", "small-batches", "deploy")
# Pages that are as long in Chinese as in English.
WHOLE = (
    "guide",
    "compare",
    "train",
    "tools",
    "diagnose",
    "studies",
    "results",
    "stability",
    "loop",
)
# Pages whose Chinese leaves sections out and links to the English ones.
SHORTER = ("performance", "gpu")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def named(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    return [code for kind, code in BLOCK.findall(path.read_text()) if kind == language]


# No GPU and no large image or network is needed to see that it runs.
SMALLER = {
    "224, 224": "64, 64",
    "torchvision.models.resnet18()": "torchvision.models.ResNet("
    "torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TAUGHT)
def test_a_pages_code_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(DOCS / f"{name}.md", "python"))
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    torch.manual_seed(0)
    exec(compile(code, f"{name}.md", "exec"), {"__name__": "__main__"})


def loop(folder, *arguments, before=()):
    """What the example of a training loop prints."""
    command = (*before, DOCS / "examples" / "loop.py", *arguments)
    return python(*command, folder=folder, OMP_NUM_THREADS="1").stdout.splitlines()


def test_the_training_loop_resumes_compiles_and_runs_in_two_processes(tmp_path):
    (first,) = loop(tmp_path, "--epochs", "1")
    (second,) = loop(tmp_path, "--epochs", "2", "--compile")
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    (third,) = loop(tmp_path, "--epochs", "3", before=launch)
    for epoch, line in enumerate((first, second, third), start=1):
        assert re.fullmatch(rf"epoch {epoch}: loss 2\.\d+", line)


@pytest.mark.parametrize("page", sorted(DOCS.glob("zh/*.md")), ids=named)
def test_the_chinese_page_has_the_code_of_the_english_one(page):
    other = DOCS / page.name
    assert other.is_file()
    code = [ast.dump(ast.parse(block)) for block in blocks(other, "python")]
    for block in blocks(page, "python"):
        assert ast.dump(ast.parse(block)) in code, block


def shape(path):
    """What both languages must have alike: code, commands, formulas, pictures, and of tables the
    rows with their code and numbers.
    """
    text = re.sub(r"^```(\w+)\n(.*?)^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [*text.splitlines(), ""]
    return {
        "code": [ast.dump(ast.parse(block)) for block in blocks(path, "python")],
        "typed": [re.sub(r" +# .*", "", line) for line in lines if line.startswith("    ")],
        "headings": [re.sub(r"[^#].*", "", line) for line in lines if line.startswith("#")],
        "pictures": [Path(link).name for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)],
        "rows": [
            sorted(re.findall(r"`[^`]+`|\$[^$]+\$|\d+(?:[.,]\d+)*", line))
            for line in lines
            if line.startswith("|")
        ],
        "columns": [len(re.split(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")],
    }


@pytest.mark.parametrize("name", WHOLE)
def test_both_languages_of_a_whole_page_are_in_step(name):
    english, chinese = shape(DOCS / f"{name}.md"), shape(DOCS / "zh" / f"{name}.md")
    for part, content in english.items():
        assert content == chinese[part], part


@pytest.mark.parametrize("name", SHORTER)
def test_a_shorter_chinese_page_has_rows_commands_and_pictures_of_the_english_one(name):
    english, chinese = shape(DOCS / f"{name}.md"), shape(DOCS / "zh" / f"{name}.md")
    for part in ("typed", "pictures", "rows"):
        more = Counter(map(str, chinese[part])) - Counter(map(str, english[part]))
        assert not more, part
    assert re.search(rf"\]\(\.\./{name}\.md#", (DOCS / "zh" / f"{name}.md").read_text())


PLACES = sorted(
    {place for page in PAGES for place in re.findall(r"\{place\}`([^`]+)`", page.read_text())}
)


@pytest.mark.parametrize("target", PLACES)
def test_places_are_there(target):
    place = find(target)
    line = (PLACES_ROOT / place.path).read_text().splitlines()[place.line - 1]
    _, _, piece = target.partition(" @ ")
    assert (piece or target.replace("#", ".").split(".")[-1]) in line or "#" not in target


def test_a_place_that_is_not_there_is_an_error():
    for target in ("rbnorm.nothing", "rbnorm.definition.nothing", "no/file.py"):
        with pytest.raises(LookupError, match="no "):
            find(target)
    with pytest.raises(LookupError, match="no line with 'nowhere'"):
        find("rbnorm.definition.literal_rbn @ nowhere")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_between_files_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target = link.partition("#")[0]
        if target and "://" not in target:
            assert (page.parent / target).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_other_places_are_whole_addresses(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\((\w+:[^)\s]*)\)", text):
        address = urlsplit(link)
        assert address.scheme == "https", link
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", address.netloc), link
        assert re.fullmatch(r"[\w./%~-]*", address.path), link
        assert not link.endswith((".", ",")), link
