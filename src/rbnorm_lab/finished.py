"""What a command printed last, for when it is given again and nothing has changed since.

It needs no torch, which takes longer to import than this to answer.
"""

import hashlib
from contextlib import suppress
from pathlib import Path
from shutil import get_terminal_size
from typing import Final

from rbnorm_lab.names import version

_FILE: Final = ".finished"
_SOURCES: Final = ("*.py", "*.html")


def nothing_left(out: Path) -> str:
    """What a command says that finds every run in the folder."""
    return f"Nothing left to run: {out} has every run."


def shown_again(out: Path, command: str) -> bool:
    """Print what the command printed last, if all files in the folder are as it left them."""
    try:
        state, _, said = (out / _FILE).read_text(encoding="utf-8").partition("\n")
        again = state == _state(out, command)
    except OSError:  # there is none, or another process is at work here
        return False
    if again:
        print(nothing_left(out), said, sep="\n", end="")
    return again


def remember(out: Path, command: str, said: str) -> None:
    """Keep what a command printed that has written all of its files and has nothing left to do."""
    with suppress(OSError):  # it only saves time
        (out / _FILE).write_text(f"{_state(out, command)}\n{said}", encoding="utf-8")


def _state(out: Path, command: str) -> str:
    """A digest of the command, of this version and of every file of the folder."""
    of = version(), command, get_terminal_size().columns
    digest = hashlib.sha256(repr(of).encode())
    own = Path(__file__).parent
    sources = [path for pattern in _SOURCES for path in own.rglob(pattern)]
    results = [p for p in out.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != _FILE]
    for path in sorted((*sources, *results)):
        digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()
