"""docs/tools.md names tests that exist, all of them, and the versions that they run with."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/tools.md").read_text(encoding="utf-8")
TESTS = {
    path.stem: set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    for path in (ROOT / "tests").glob("test_*.py")
}
OWN = ("test_tools_torch", "test_tools_torchvision", "test_tools_timm", "test_parallel")


def test_every_row_is_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "---" not in line]
    rows = [row for row in rows if not row.startswith("| tool |")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= set().union(*TESTS.values()), row


def test_every_test_is_in_a_row() -> None:
    for module in OWN:
        for name in TESTS[module]:
            assert f"`{name}`" in PAGE, f"{module}::{name}"


def test_versions_are_the_pinned_ones() -> None:
    pins = (ROOT / "constraints.txt").read_text() + (ROOT / "Makefile").read_text()
    headings = re.findall(r"^## (torch|torchvision|timm) (\S+)$", PAGE, re.MULTILINE)
    assert len(headings) == 3
    for name, version in headings:
        assert re.search(rf"\b{name}=={re.escape(version)}\b", pins), (name, version)
