"""The GPU report tried without a GPU: every step, at the least size, in Triton's interpreter."""

import json

import pytest
from processes import ROOT, python

from rbnorm_cli.main import LAB
from tools.gpu_report import draw
from tools.gpu_report.draw import Report
from tools.marks import marked

pytest.importorskip("triton", reason="Triton is installed on Linux only")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return out, python("-m", "tools.gpu_report", "--out", out, "--device", "cpu").stdout


def test_every_step_ends_well(report):
    out, printed = report
    rows = json.loads((out / "gpu-report.json").read_text())
    assert not [row for row in rows if "failed" in row]
    steps = {row["name"]: row["status"] for row in rows if row["step"] == "steps"}
    assert set(steps.values()) == {"ok"}
    assert steps.keys() == {row["step"] for row in rows} - {"steps"}
    assert all(f"== {name}" in printed for name in steps)


BARE = f"""
import sys

class Missing:
    def find_spec(self, name, *_):
        if name in {set(LAB) - {"filelock", "jinja2"}}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import tools.gpu_report.__main__
"""


def test_torch_and_triton_are_all_it_needs():
    python("-c", BARE)


def test_an_unknown_step_is_refused(tmp_path):
    arguments = ("--out", tmp_path / "r", "--steps", "speed")
    found = python("-m", "tools.gpu_report", *arguments, code=2)
    assert "--steps must be of machine, warm" in found.stderr
    assert not (tmp_path / "r").exists()


REPORT = Report(json.loads((ROOT / "results/gpu/h200/gpu-report.json").read_text()))


@pytest.mark.parametrize(("path", "language"), [("docs/gpu.md", "en"), ("docs/zh/gpu.md", "zh")])
def test_the_page_is_drawn_from_the_report(path, language):
    assert marked(ROOT / path, draw.NAME) == draw.page(REPORT, language)


@pytest.mark.parametrize(("path", "language"), [("README.md", "en"), ("README.zh-CN.md", "zh")])
def test_the_line_of_the_readme_is_drawn_from_the_report(path, language):
    assert marked(ROOT / path, draw.NAME) == draw.line(REPORT, language)
