"""These tests run the Triton kernels on the CPU, in Triton's interpreter.

Triton decides at import whether it interprets: they need a process of their own, which
``test_interpreted.py`` starts, and without the variable there is nothing to collect.
"""

import os
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A device overflows without a word, and to what the formulas need; NumPy warns."""
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:  # pytest hands over those of the whole run
            continue
        item.add_marker(pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"))


def pytest_report_header() -> str | None:
    return None if INTERPRETED else "tests/triton_kernels runs with TRITON_INTERPRET=1 only"
