"""These need the packages of the extra ``tools``, and run by ``make test-tools`` alone."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if config.option.markexpr == "tools" else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:  # pytest hands over those of the whole run
            continue
        item.add_marker(pytest.mark.tools)
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # of the tools, of one another
