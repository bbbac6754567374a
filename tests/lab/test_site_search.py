"""The search of the Chinese site, in a browser."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {
    "index": "# 首页\n\n```{toctree}\na\nb\n```\n",
    "a": "# 甲\n\n归一化批量与统计量。\n",
    "b": "# 乙\n\n滑动均值，calibrated layers。\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    for name, text in PAGES.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    options = ["-q", "-W", "-b", "html", "-c", str(DOCS), "-D", "language=zh_CN"]
    command = [sys.executable, "-m", "sphinx", *options, str(folder), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.parametrize(
    ("query", "found"),
    [("归一化批量", ["甲"]), ("统计", ["甲"]), ("均值", ["乙"]), ("layer", ["乙"]), ("方差", [])],
)
def test_a_query_finds_its_pages(browser, site, query, found):
    page = browser.new_page(locale="zh-CN")
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{(site / 'search.html').as_uri()}?q={query}")
    page.wait_for_selector("#search-results .search-summary")
    page.wait_for_function("document.querySelector('.search-summary').textContent.length > 0")
    page.wait_for_timeout(500)
    assert set(errors) <= {"Failed to fetch"}  # excerpts, which a browser reads from no file
    assert page.locator("#search-results li a").all_inner_texts() == found
    page.close()
