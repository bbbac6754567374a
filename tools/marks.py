"""Text that programs write into pages, between ``<!-- name -->`` and ``<!-- /name -->``."""

from pathlib import Path

from rbnorm.models.files import replace


def _cut(path: Path, name: str) -> list[str]:
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = path.read_text()
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"{path} must have the marks {begin} and {end} once")
    before, _, rest = page.partition(begin)
    text, _, after = rest.partition(end)
    return [before + begin, text, end + after]


def put(path: Path, name: str, text: str) -> None:
    """Put the text, as it is, between the marks of this name.

    Raises:
        ValueError: The page does not have these marks once; it is as it was.
    """
    before, _, after = _cut(path, name)
    replace(path, f"{before}{text}{after}".encode())


def marked(path: Path, name: str) -> str:
    """The text between the marks of this name."""
    return _cut(path, name)[1]
