"""The package's rooms: no circle among imports, and the way of x from a layer to a kernel."""

import ast
import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from direct import ON
from torch import nn

import rbnorm
from rbnorm import RepresentativeBatchNormAct2d
from rbnorm.kernels import Kernels, phases
from rbnorm.kernels.phases import Whole

ROOT = Path(rbnorm.__file__).parent
backends_module = importlib.import_module("rbnorm.kernels.backends")


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("rbnorm", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path, names: set[str]) -> Iterator[str]:
    """What a module imports of the package, for types and in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from {inner if inner in names else node.module} & names


def test_no_module_imports_itself_by_others() -> None:
    paths = modules()
    graph = {name: set(imported(path, set(paths))) for name, path in paths.items()}
    assert list(TopologicalSorter(graph).static_order())


def stack() -> list[tuple[str, str]]:
    """The package's frames that lead here, the first first: room and function."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            found.append((path.relative_to(ROOT).parts[0], frame.f_code.co_name))
        frame = frame.f_back
    return found[::-1]


@pytest.mark.parametrize("kind", [rbnorm.RepresentativeBatchNorm2d, RepresentativeBatchNormAct2d])
@pytest.mark.parametrize("whole", [True, False])
def test_five_frames_lead_to_a_kernel(whole: bool, kind: type[nn.Module], monkeypatch) -> None:
    """Of a training step, from the layer's ``forward``; no room is entered twice."""
    stacks = []

    def spy(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            stacks.append(stack())
            return function(*arguments)

        return call

    plain = SimpleNamespace(**{name: spy(getattr(phases, name)) for name in phases.PHASES})
    override = (
        Whole(*(spy(getattr(ON["portable"], name)) for name in Whole._fields)) if whole else None
    )
    monkeypatch.setattr(backends_module, "_active", {"cpu": Kernels(plain, override)})
    kind(3)(torch.randn(2, 3, 4, 4)).sum().backward()
    forward, *_ = stacks
    rooms = [room for room, _ in itertools.groupby(forward, key=lambda frame: frame[0])]
    assert rooms == ["layers", "functional.py", "engine"]
    assert forward[0][1] == "forward"
    assert len(forward) <= 5
