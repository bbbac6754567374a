"""Records made up for tests, and the command run as a user runs it."""

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from rbnorm_cli.main import main
from rbnorm_lab.config import RunConfig
from rbnorm_lab.records import Epoch, Record

CONFIG = RunConfig("digits", "cifar-resnet8", "bn", 64, 0, 2, 0.1, 0.0005)


def make_record(accuracy=0.9, spreads=(0.1, 0.2), shifted=None, **config):
    epochs = (Epoch(1.0, 0.5, 0.9, accuracy / 2, 1.0), Epoch(0.5, 0.8, 0.4, accuracy, 1.0))
    return Record(
        config=replace(CONFIG, **config),
        epochs=epochs,
        channel_mean_std={f"layer{i}": spread for i, spread in enumerate(spreads)},
        calibration={},
        shifted=shifted or {},
        diverged=False,
        device="cpu",
        seconds=2.5,
        environment={"torch": "2", "commit": None},
        created="2026-01-01T00:00:00+00:00",
    )


def environment():
    """A child process measures nothing but itself: one thread, no launcher's variables."""
    inherited = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE"}}
    return {**inherited, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def command(*arguments):
    return [sys.executable, "-m", "rbnorm", *map(str, arguments)]


def run(*arguments, cwd: Path, timeout=600):
    return execute(command(*arguments), cwd, timeout)


def called(*arguments, cwd: Path):
    """The command in this process: what :func:`run` gives, without starting another."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setenv("COLUMNS", "120")
        status = main(list(map(str, arguments)))
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def execute(argv, cwd: Path, timeout=600):
    return subprocess.run(
        argv,
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


VIEWPORTS = {"desktop": (1000, "light"), "phone": (390, "dark")}


def opened(browser, path: Path, viewport: str):
    """A page in one of ``VIEWPORTS``, which keeps its errors and requests."""
    width, scheme = VIEWPORTS[viewport]
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.errors, page.requests = [], []
    page.on("console", lambda message: page.errors.append(message.text))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(path.as_uri())
    return page


SIDEWAYS = """() => [...document.querySelectorAll("body, body *")].filter(e => {
  const box = e.getBoundingClientRect();
  const scrolls = ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const wider = scrolls && e.clientWidth && e.scrollWidth > e.clientWidth + 1;
  const outside = (e.localName === "text" || e.children.length === 0) && box.width && e.textContent
    && !e.closest(".hidden") && (box.left < -1 || box.right > innerWidth + 1);
  return wider || outside;
}).map(e => `${e.localName} ${e.id} ${e.className} ${e.textContent.slice(0, 60)}`)"""


def assert_fits(page):
    """In either language nothing is off the page or scrolls sideways."""
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        sideways = page.evaluate(SIDEWAYS)
        assert not sideways, sideways
        page.click("#language")
