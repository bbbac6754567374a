"""``rbnorm explain``: train, measure, write ``explain.html``."""

import inspect
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup, escape

from rbnorm.definition import literal_rbn
from rbnorm.models.files import replace
from rbnorm_lab.explain.network import CALIBRATION_RATE, layer_facts, trained
from rbnorm_lab.explain.photographs import PHOTOGRAPHS, photograph_parts
from rbnorm_lab.folders import make_folder
from rbnorm_lab.progress import terminal
from rbnorm_lab.records import environment
from rbnorm_lab.templates import render

PAGE: Final = "explain.html"


def explain(out: Path, command: str) -> None:
    """Train a small network on parts of two photographs, and write the page.

    Args:
        out: Folder to write to.
        command: The command line that makes this page again.

    Raises:
        UsageError: The folder cannot be written.
    """
    data = photograph_parts()
    model, accuracy = trained(data)
    page = write_page(layer_facts(model, data), accuracy, command)
    make_folder(out)
    replace(out / PAGE, page.encode())
    terminal().print(f"Page: {out / PAGE}", soft_wrap=True)


_LETTER: Final = re.compile(r"\b([XKw])_(\w+)")


def letters(text: str) -> Markup:
    """A sentence whose ``w_m`` is an italic letter with an index."""
    return Markup(_LETTER.sub(r"<i>\1</i><sub>\2</sub>", str(escape(text))))


def literal_line(piece: str) -> str:
    """The line of the literal definition that has this piece.

    Raises:
        LookupError: There is none, or there are several.
    """
    source = inspect.getsource(literal_rbn).splitlines()
    found = [line.strip() for line in source if piece in line]
    if len(found) != 1:
        raise LookupError(f"{len(found)} lines of the literal definition have {piece!r}")
    return found[0]


def write_page(facts: dict[str, Any], accuracy: float, command: str) -> str:
    """The page as text: one file that needs no network.

    Args:
        facts: See :func:`rbnorm_lab.explain.network.layer_facts`.
        accuracy: Of the network on held-out parts.
        command: The command line that makes this page again.
    """
    here = files("rbnorm_lab.explain")
    rbn, script = ((here / name).read_text(encoding="utf-8") for name in ("rbn.js", "page.js"))
    return render(
        "explain/page.html",
        rbn=Markup(rbn),
        script=Markup(script),
        data=Markup(json.dumps(facts, allow_nan=False, separators=(",", ":"))),
        letters=letters,
        line=literal_line,
        faster=CALIBRATION_RATE,
        channels=[channel["index"] for channel in facts["channels"]],
        images=len(facts["channels"][0]["maps"]),
        photographs=PHOTOGRAPHS,
        accuracy=accuracy,
        command=command,
        environment=environment(),
    )
