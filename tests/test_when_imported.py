"""What waits for somebody's import of another library."""

import importlib
import sys

import pytest

from rbnorm.integrations import when_imported


@pytest.fixture
def library(tmp_path, monkeypatch) -> str:
    (tmp_path / "somebodys_library.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "somebodys_library"
    sys.modules.pop("somebodys_library", None)


def test_acts_once_after_the_import(library) -> None:
    seen: list[object] = []
    when_imported(library, lambda: seen.append(sys.modules[library].VALUE))
    assert seen == []
    module = importlib.import_module(library)
    assert seen == [3]
    assert type(module.__loader__) is type(module.__spec__.loader)
    assert type(module.__loader__).__module__ != "rbnorm.integrations"
    importlib.reload(module)
    assert seen == [3]
    when_imported(library, lambda: seen.append(4))
    assert seen == [3, 4]


def test_a_library_that_is_not_there_stays_missing(monkeypatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    when_imported("no_such_library", lambda: None)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        importlib.import_module("no_such_library")
