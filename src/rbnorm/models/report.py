"""Reports that fit a terminal and need no library, and their export."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbnorm.models.files import replace

if TYPE_CHECKING:
    import pandas

WIDTH = 80
_ROWS = 20  # of a printed table; frames and JSON have all


class Report:
    """Something that an interpreter shows as ``print`` does."""

    def __repr__(self) -> str:
        return str(self)


class Table(Report):
    """A report that is also a table with a row for each thing measured, and JSON."""

    def rows_of_table(self) -> list[dict[str, Any]]:
        """The rows, by names of columns."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it: None for what is not finite."""
        raise NotImplementedError

    def to_frame(self) -> pandas.DataFrame:
        """The table; shares are fractions.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas  # noqa: PLC0415 - the library depends on torch alone
        except ImportError:
            raise ImportError("to_frame needs pandas: install it with pip install pandas") from None
        return pandas.DataFrame(self.rows_of_table())

    def to_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file, whole or not at all."""
        text = json.dumps(self.to_dict(), allow_nan=False, separators=(",", ":"))
        replace(Path(path), f"{text}\n".encode())


def finite(value: Any) -> Any:
    """The same for JSON: lists for tuples, None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None, form: str = ".2f") -> str:
    """A number for a table, a dash where there is none."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def percent(value: float, form: str = ".1f") -> str:
    """A share in percent."""
    return number(100 * value, form)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns within 80 characters; of a long name in the first one, its end is shown."""
    lines = [header, *rows]
    left = lines[1:][_ROWS:]
    lines = lines[: _ROWS + 1]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] = max(8, min(widths[0], WIDTH - sum(width + 2 for width in widths[1:])))
    text = "\n".join(
        "  ".join([_cut(first, widths[0]).ljust(widths[0]), *map(str.rjust, rest, widths[1:])])
        for first, *rest in lines
    )
    return f"{text}\n... and {len(left)} more" if left else text


def paragraph(text: str) -> str:
    """A sentence in lines of at most 80 characters."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"...{text[3 - width :]}"
