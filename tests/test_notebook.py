"""The notebook runs from top to bottom, and the copy for Colab is what its source says."""

from pathlib import Path

import jupytext
import nbclient
import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "notebooks" / "rbn.py"
HEADINGS = (
    "引言",
    "BN的缺点",
    "Representative Batch Normalization",
    "Centering Calibration",
    "公式推导",
    "Scaling Calibration",
    "公式推导",
    "整体流程",
    "实验对比",
    "代码",
    "总结",
)


@pytest.fixture(scope="module")
def source():
    return jupytext.read(SOURCE)


def test_the_notebook_runs(source, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    nbclient.NotebookClient(
        source, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in source.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output.output_type == "error"]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "w_b = 1: R = 0.731" in printed
    assert "leaf" in printed


def test_its_headings_are_those_of_the_article_in_order(source):
    headings = iter(
        line for cell in source.cells for line in cell.source.splitlines() if line.startswith("#")
    )
    for wanted in HEADINGS:
        assert any(wanted in heading for heading in headings), wanted


def test_the_copy_for_colab_is_the_source(source):
    copy = jupytext.read(SOURCE.with_suffix(".ipynb"))
    kinds = [[(cell.cell_type, cell.source) for cell in book.cells] for book in (source, copy)]
    assert kinds[0] == kinds[1], "make the copy again: make notebook"


def test_the_copy_shows_what_was_printed_and_drawn():
    text = SOURCE.with_suffix(".ipynb").read_text()
    outputs = [o for cell in jupytext.reads(text, "ipynb").cells for o in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert "site-packages" not in text
