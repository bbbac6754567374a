"""Try built distributions as a stranger would: a fresh environment, no compiler, and no trace left.

    python tools/try_install.py dist/*.whl --torch torch==2.4.1 --python python3.10

For each file: a new environment gets torch and the file, and nothing else is on the PATH; the layer
is compared with its definition in training and evaluation; ``rbnorm.backends()`` must say c++ for
a wheel with kernels, and the warning must come for anything else. With ``--lab`` the file's extra
`lab` is installed, the README's Python blocks are run and ``rbnorm compare`` trains on digits. Then
pip removes rbnorm, and nothing of it may be left.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
LAYER = """
import json, warnings
import torch
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Failed to initialize NumPy")
import rbnorm
from rbnorm.definition import literal_rbn

torch.manual_seed(0)
layer = rbnorm.RepresentativeBatchNorm2d(8, center_weight_init=0.3, scale_weight_init=-0.4)
x, said = torch.randn(4, 8, 5, 7), []
for training in (True, False):
    layer.train(training)
    names = ("weight", "bias", "center_weight", "scale_weight", "scale_bias")
    wide = [getattr(layer, name).detach().double() for name in names]
    running = None if training else (layer.running_mean.double(), layer.running_var.double())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = layer(x)
        said += [w.category.__name__ for w in caught]
    expected, *_ = literal_rbn(x.double(), *wide, statistics=running, eps=layer.eps)
    assert torch.allclose(y.double(), expected, rtol=0, atol=1e-5), (training, y, expected)
layer.train()(x.requires_grad_()).square().sum().backward()
assert x.grad.isfinite().all()
print(json.dumps([rbnorm.__version__, torch.__version__, *rbnorm.backends()["cpu"], said]))
"""


def main() -> int:
    """Try every file; exit status 1 where one falls short."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="+", type=Path, help="wheels and source distributions")
    parser.add_argument("--python", default=sys.executable, help="the interpreter")
    parser.add_argument("--torch", nargs="*", default=["torch"], help="what pip installs first")
    parser.add_argument("--beside", type=Path, help="use what this site-packages folder has, too")
    parser.add_argument("--lab", action="store_true", help="try the command line and the README")
    options = parser.parse_args()
    failed = False
    for file in options.files:
        with tempfile.TemporaryDirectory() as folder:
            try:
                said = _try(file.resolve(), Path(folder), options)
            except (AssertionError, subprocess.CalledProcessError) as error:
                failed, said = True, f"FAILED: {getattr(error, 'stderr', None) or error}"
        print(f"{file.name}: {said}", flush=True)
    return int(failed)


def _try(file: Path, folder: Path, options: argparse.Namespace) -> str:
    home = folder / "environment"
    subprocess.run([options.python, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    packages = Path(
        _run(folder, [python, "-c", "import sysconfig as s; print(s.get_path('purelib'))"])
    )
    if options.beside is not None:
        (packages / "beside.pth").write_text(f"{options.beside.resolve()}\n")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if options.torch:
        _run(folder, [*pip, "install", *options.torch])
    before = _listing(home)
    _run(folder, [*pip, "install", f"{file}[lab]" if options.lab else file])
    version, torch, backend, why, warned = json.loads(_run(folder, [python, "-c", LAYER]))
    compiled = "abi3" in file.name
    assert backend == ("c++" if compiled else "portable"), f"backend {backend}: {why}"
    assert warned == ([] if compiled else ["NoKernelsWarning"]), warned
    if options.lab:
        _lab(folder, python)
    _run(folder, [*pip, "uninstall", "--yes", "rbnorm"])
    left = sorted(path for path in _listing(home) - before if "rbnorm" in path)
    assert not left, f"left behind: {left}"
    ran = ", README and compare" if options.lab else ""
    name = _run(folder, [python, "--version"])
    return f"rbnorm {version} in {name}, torch {torch}: {backend} ({why}){ran}; nothing left"


def _lab(folder: Path, python: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "readme.py").write_text("\n".join(blocks))
    _run(folder, [python, "readme.py"])
    short = ["--norms", "bn", "rbn", "--batch-sizes", "64", "--seeds", "1", "--epochs", "1"]
    _run(folder, [python.parent / "rbnorm", "compare", *short])
    assert (folder / "rbnorm-compare" / "report.html").is_file()


def _listing(home: Path) -> set[str]:
    found = (path.relative_to(home) for path in home.rglob("*"))
    return {str(path) for path in found if "__pycache__" not in path.parts}


def _run(folder: Path, command: Sequence[str | Path]) -> str:
    """What a command prints, where there is no compiler and no source tree to be found."""
    hidden = ("PYTHON", "CC", "CXX", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    environment["PATH"] = str(Path(command[0]).parent)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
