"""What an installation has where a compiler was missing when it was built."""

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import ROOT, python

import rbnorm
from rbnorm.kernels import installation

PACKAGE = Path(rbnorm.__file__).parent
KERNELS = "cpu/_kernels.abi3.so"

DECIDE = """
import json, sys
sys.modules["torch"] = None  # the build knows nothing of it
import setuptools
from distutils.core import run_setup
found = run_setup("setup.py", stop_after="init")
tag = found.command_options.get("bdist_wheel", {}).get("py_limited_api", [None, None])[1]
print(json.dumps([[extension.name for extension in found.ext_modules or []], tag]))
"""
SAY = """
import json, torch, warnings, rbnorm
{setting}
layer, x = rbnorm.RepresentativeBatchNorm2d(3), torch.randn(2, 3, 4, 4)
with warnings.catch_warnings(record=True) as caught:
    for _ in range(2):
        y = layer(x)
assert torch.allclose(y, 0.7310585786 * torch.nn.BatchNorm2d(3)(x), rtol=0, atol=1e-6)
said = [[w.category.__name__, str(w.message)] for w in caught]
print(json.dumps([rbnorm.__file__, *rbnorm.backends()["cpu"], said]))
"""


def run(code: str, **environment: str) -> list:
    return json.loads(python("-c", code, **environment).stdout)


DESCRIBE = """
import json
from distutils.core import run_setup
found = run_setup("setup.py", stop_after="init")
print(json.dumps([found.metadata.long_description, found.metadata.long_description_content_type]))
"""
EXTRAS = """
import json
from distutils.core import run_setup
print(json.dumps(run_setup("setup.py", stop_after="config").extras_require))
"""
LINK = re.compile(r"(!?)\[[^][]*\]\(([^)\s]+)\)")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no kernels for Windows")
def test_build_has_kernels_without_torch() -> None:
    assert run(DECIDE) == [["rbnorm.kernels.cpu._kernels"], "cp310"]


@pytest.mark.parametrize("name", ["", "somebody/rbnorm"], ids=["no repository", "a repository"])
def test_links_of_the_readme_lead_somewhere_on_an_index(name: str) -> None:
    text, kind = run(DESCRIBE, GITHUB_REPOSITORY=name, GITHUB_SERVER_URL="https://host")
    assert kind == "text/markdown"
    outside = [link for _, link in LINK.findall(text)]
    assert all(link.startswith("https://") for link in outside)
    own = f"https://host/{name}"
    version = f"v{rbnorm.__version__}"
    if name:
        assert f"[Quickstart]({own}/blob/{version}/docs/quickstart.md)" in text
        assert f"({own}/raw/{version}/results/diagnose-pacs/remedies.png)]({own}/blob/" in text
        files = [
            link.split(version)[1].partition("#")[0] for link in outside if link.startswith(own)
        ]
        assert all((ROOT / file.strip("/")).is_file() for file in files)
        text = re.sub(rf"{own}/(raw|blob)/{version}/", "", text)
        assert text == (ROOT / "README.md").read_text()
    else:
        assert "| Quickstart, questions |" in text
        assert "remedies.png" not in text
        assert "[Paper](https://" in text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' compilers have other names")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ on the PATH")
def test_kernels_are_there_where_a_compiler_is() -> None:
    assert rbnorm.backends()["cpu"].name == "c++"


def test_wheel_without_kernels_says_why_once_and_is_for_any_machine(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info")
    )
    build = "import sys\nsys.argv = ['setup.py', '-q', 'bdist_wheel', '-d', 'dist']\n"
    build += "exec(open('setup.py').read())"
    done = python("-c", build, folder=tmp_path, CC="/missing", CXX="/missing")
    said = [line for line in done.stderr.splitlines() if line.startswith("rbnorm: ")]
    assert len(said) == 1
    assert said[0].startswith("rbnorm: no C++ kernels: ")
    # The second form is that of setuptools 77.
    why = "(No such file or directory: '/missing'|'/missing' failed: No such file or directory)"
    assert re.search(why, said[0])
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name == f"rbnorm-{rbnorm.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "rbnorm/layers/classes.py" in names
    assert not [name for name in names if name.endswith(".so")]


def without_kernels(folder: Path, kernels: bytes | None) -> Path:
    """A copy of the package with these kernels, or none."""
    copy = folder / "rbnorm"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if kernels is not None:
        (copy / "kernels" / KERNELS).write_bytes(kernels)
    return copy


def broken(name: str) -> bytes | None:
    """No kernels, or a file that is none, or whose header says that it is for another processor."""
    library = PACKAGE / "kernels" / KERNELS
    if name == "none":
        return None
    if name == "no library" or not library.is_file():
        return b"not a library"
    header = bytearray(library.read_bytes())
    header[18:20] = b"\xf3\x00"  # RISC-V, by the ELF's e_machine
    return bytes(header)


@pytest.mark.parametrize(
    ("kernels", "why"),
    [
        ("none", "no C++ compiler was there for the build"),
        ("no library", "the C++ kernels do not load: "),
        ("another machine's", "the C++ kernels do not load: "),
    ],
)
def test_installation_without_kernels_works_and_says_why_once(
    tmp_path: Path, kernels: str, why: str
) -> None:
    copy = without_kernels(tmp_path, broken(kernels))
    file, name, reason, said = run(SAY.format(setting=""), PYTHONPATH=str(tmp_path))
    assert Path(file).parent == copy
    assert name == "portable"
    assert why in reason
    ((category, message),) = said
    assert category == "NoKernelsWarning"
    assert message.endswith(reason)


@pytest.mark.parametrize(
    "setting",
    [
        "warnings.filterwarnings('ignore', category=rbnorm.NoKernelsWarning)",
        "context = rbnorm.use_backend('portable'); context.__enter__()",
    ],
    ids=["a filter", "a choice"],
)
def test_warning_can_be_silenced(tmp_path: Path, setting: str) -> None:
    without_kernels(tmp_path, None)
    assert run(SAY.format(setting=setting), PYTHONPATH=str(tmp_path))[3] == []


@pytest.mark.skipif(rbnorm.backends()["cpu"].name != "c++", reason="there are no kernels here")
def test_installation_with_kernels_does_not_warn() -> None:
    assert run(SAY.format(setting=""))[3] == []


@pytest.mark.parametrize("marker", ['>= "3.11"', '< "3.11"'], ids=["newer", "3.10"])
def test_what_the_extras_ask_for_is_pinned_for_every_python(marker: str) -> None:
    extras = {name: wanted for name, wanted in run(EXTRAS).items() if name != "tools"}
    asked = {re.match(r"[\w-]+", line)[0] for wanted in extras.values() for line in wanted}
    assert "timm" in asked
    pinned = (ROOT / "constraints.txt").read_text()
    for name in asked - {"rbnorm", "torch", "torchvision"}:
        assert re.search(rf"(?im)^{name}==\S+ ; python_version {marker}$", pinned), name


URL = "https://host/rbnorm.git"


@pytest.mark.parametrize(
    ("origin", "what"),
    [
        ({"url": "file:///a%20folder/rbnorm", "dir_info": {}}, '"/a folder/rbnorm"'),
        (
            {"url": URL, "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            f'"git+{URL}@abc123"',
        ),
        ({"url": "https://host/rbnorm-0.2.0.tar.gz"}, '"https://host/rbnorm-0.2.0.tar.gz"'),
        ({"url": "file:///x/rbnorm-0.2.0-py3-none-any.whl"}, "PATH_OR_URL_OF_THE_SOURCES"),
        (None, "--no-binary rbnorm rbnorm"),
    ],
    ids=["a folder", "a repository", "an archive", "a wheel", "an index"],
)
def test_command_installs_from_where_this_came_from(monkeypatch, origin, what: str) -> None:
    text = None if origin is None else json.dumps(origin)
    there = SimpleNamespace(read_text=lambda name: text)
    monkeypatch.setattr(installation, "distribution", lambda name: there)
    monkeypatch.setattr(installation, "_source_tree", lambda: None)
    assert installation.build_command() == f"pip install --force-reinstall --no-deps {what}"


def test_command_of_a_source_tree_names_it() -> None:
    assert installation.build_command().endswith(f' "{ROOT}"')
