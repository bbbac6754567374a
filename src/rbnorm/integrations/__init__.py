"""RBN in the registries of other people's tools, on request; each module needs its tool."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from rbnorm.layers.base import _RepresentativeBatchNorm


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds one module as the others do, and acts once that has been imported."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self.name, self.act = name, act

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                self.act()

            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


def when_imported(name: str, act: Callable[[], None]) -> None:
    """Call a function now if a module has been imported, else right after somebody imports it."""
    if name in sys.modules:
        act()
    else:
        sys.meta_path.insert(0, _Waiting(name, act))


def layer_classes(base: type = _RepresentativeBatchNorm) -> set[type]:
    """RBN's classes, those of a user's own among them."""
    return {base}.union(*map(layer_classes, base.__subclasses__()))
