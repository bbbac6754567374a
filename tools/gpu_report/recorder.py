"""A plugin of pytest that writes a row for every test, so that a test run cut short says much."""

from __future__ import annotations

import os
from typing import Any

from tools.gpu_report.rows import FILE, append


def pytest_runtest_logreport(report: Any) -> None:
    """A test's call, or what came in its way."""
    controller = "PYTEST_XDIST_WORKER" not in os.environ
    if FILE not in os.environ or not controller or (report.when != "call" and report.passed):
        return
    row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    if report.failed:
        row["error"] = str(report.longrepr)[-600:]
    append("suite", row)
