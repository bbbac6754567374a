"""docs/tools.md names tests that exist, all of them, and the versions that they run with."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/tools.md").read_text(encoding="utf-8")
TESTS = {
    path.stem: set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    for path in (*(ROOT / "tests").glob("test_*.py"), *(ROOT / "tests/libraries").glob("test_*.py"))
}
OWN = ("test_tools_torch", "test_tools_torchvision", "test_tools_timm", "test_parallel")
LIBRARIES = tuple(path.stem for path in (ROOT / "tests/libraries").glob("test_*.py"))


def test_every_row_is_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line]
    heads = ("| tool |", "| what the function does |")
    rows = [row for row in rows if not row.startswith(heads)]
    section = PAGE[PAGE.index("## Saving and loading") : PAGE.index("## Other libraries")]
    rows = [row for row in rows if row not in section]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= set().union(*TESTS.values()), row


def test_every_test_is_in_a_row() -> None:
    for module in (*OWN, *LIBRARIES):
        for name in TESTS[module]:
            assert f"`{name}`" in PAGE, f"{module}::{name}"


def test_versions_are_the_pinned_ones() -> None:
    pins = (ROOT / "constraints.txt").read_text() + (ROOT / "Makefile").read_text()
    headings = re.findall(r"^## (torch|torchvision|timm) (\S+)$", PAGE, re.MULTILINE)
    assert len(headings) == 3
    for name, version in headings:
        assert re.search(rf"\b{name}=={re.escape(version)}\b", pins), (name, version)
    rows = re.findall(r"^\| `([\w-]+)` (\d[\w.]*)", PAGE, re.MULTILINE)
    assert len(rows) > 10
    for name, version in rows:
        assert re.search(rf"^{name}=={re.escape(version)} ;", pins, re.MULTILINE), (name, version)
