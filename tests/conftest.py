"""What holds for every test: who shares a worker, and the line that a whole run ends with."""

import re
import time
from collections.abc import Generator

import pytest

_STARTED = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module share a worker, so that it is made once."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        if any(found[-1].scope == "module" for found in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """After all else: what passed and failed, how long it took, and what the run left out."""
    yield
    config = session.config
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    counts = {name: len(reports) for name, reports in reporter.stats.items()}
    said = f"{counts.get('passed', 0)} passed, {counts.get('failed', 0)} failed"
    said += "".join(f", {n} {k}" for k, n in counts.items() if k in ("error", "skipped"))
    markers = (re.fullmatch(r"(\w+): .*(\(make [\w-]+\))", x) for x in config.getini("markers"))
    left = ", ".join(f"{found[1]} {found[2]}" for found in markers if found)
    minutes = (time.monotonic() - _STARTED) / 60
    reporter.write_line(f"{said} in {minutes:.1f} minutes; left out: {left}")
