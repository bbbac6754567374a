"""The functions by name, in the pages on the math: ``python -m tools.functions_table``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from rbnorm.elementwise import ACTIVATIONS, RESTRICTIONS, Elementwise
from tools.marks import put

DOCS: Final = Path(__file__).parents[1] / "docs"
PAGES: Final = {DOCS / "math.md": "values", DOCS / "zh" / "math.md": "值域"}


def _bound(value: float) -> str:
    return f"{value:g}" if math.isfinite(value) else "-" * (value < 0) + r"\infty"


def _row(name: str, letter: str, function: Elementwise) -> str:
    low, high = map(_bound, function.range)
    return f"| `{name}` | ${letter} = {function.formula}$ | ${low}$ … ${high}$ |"


def table(values: str) -> str:
    """Both tables of functions as one, in Markdown; ``values`` heads the column of bounds."""
    rows = [_row(name, "R(s)", f) for name, f in RESTRICTIONS.items()]
    rows += [_row(name, r"\mathrm{act}(z)", f) for name, f in ACTIVATIONS.items()]
    return "\n".join([f"| | | {values} |", "| --- | --- | --- |", *rows])


if __name__ == "__main__":
    for page, heading in PAGES.items():
        put(page, "functions", f"\n\n{table(heading)}\n\n")
