"""Places in the source, found when the site is built: a file and the line that a name stands on."""

import ast
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Place(NamedTuple):
    """A line of a file of the project, and what stands on it."""

    path: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def find(target: str) -> Place:
    """Where something is defined.

    Args:
        target: A name such as ``rbnorm.definition.literal_rbn``, ``FILE#name`` or ``FILE``; after
            `` @ `` a piece of one of its lines, which is then the place.

    Raises:
        LookupError: There is no such file, name or line.
    """
    name, _, piece = (part.strip() for part in target.partition(" @ "))
    path, names = _file(name)
    lines = path.read_text(encoding="utf-8").splitlines()
    node: ast.AST = ast.parse("\n".join(lines))
    for part in names:
        children = {_name(child): child for child in ast.iter_child_nodes(node)}
        if part not in children:
            raise LookupError(f"{path.relative_to(ROOT)} defines no {'.'.join(names)}")
        node = children[part]
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", len(lines))
    numbers = [n for n in range(first, last + 1) if piece in lines[n - 1]]
    if not numbers:
        raise LookupError(f"{name} has no line with {piece!r}")
    number = numbers[0]
    return Place(path.relative_to(ROOT).as_posix(), number, lines[number - 1].strip())


def _file(name: str) -> tuple[Path, list[str]]:
    if "/" in name:
        file, _, inner = name.partition("#")
        path = ROOT / file
        if not path.is_file():
            raise LookupError(f"there is no file {file}")
        return path, inner.split(".") if inner else []
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = (ROOT / "src").joinpath(*parts[:count]).with_suffix(".py")
        if path.is_file():
            return path, parts[count:]
    raise LookupError(f"there is no module {name}")


def _name(node: ast.AST) -> str | None:
    """What a definition or an assignment names."""
    target = node.target if isinstance(node, ast.AnnAssign) else node
    target = node.targets[0] if isinstance(node, ast.Assign) else target
    return getattr(target, "id", getattr(target, "name", None))
