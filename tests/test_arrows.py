"""Three packages, arrows downward only: the command line, the lab, the library."""

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"


@pytest.mark.parametrize("package", ["rbnorm_lab", "rbnorm_cli"])
def test_the_library_imports_neither(package):
    imported = re.compile(rf"^\s*(from|import) {package}\b", re.MULTILINE)
    files = [path for path in (SOURCE / "rbnorm").rglob("*.py") if path.name != "__main__.py"]
    assert len(files) > 50
    assert [path.name for path in files if imported.search(path.read_text())] == []
