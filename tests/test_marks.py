"""Text between marks of a page."""

from pathlib import Path

import pytest

from tools.marks import marked, put


def test_the_rest_of_a_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before <!-- a b -->old<!-- /a b --> after <!-- c --><!-- /c -->")
    put(page, "a b", "new")
    put(page, "a b", "newer")
    assert marked(page, "a b") == "newer"
    assert page.read_text() == "before <!-- a b -->newer<!-- /a b --> after <!-- c --><!-- /c -->"


@pytest.mark.parametrize(
    "text", ["", "<!-- a -->", "<!-- /a --><!-- a -->", "<!-- a --><!-- a --><!-- /a -->"]
)
def test_a_page_without_the_marks_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="must have the marks <!-- a --> and <!-- /a --> once"):
        put(page, "a", "new")
    assert page.read_text() == text
