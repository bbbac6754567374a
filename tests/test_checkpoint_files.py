"""``rbnorm convert``: the function is kept, and what is no checkpoint is refused."""

import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from models import shake
from torch import Tensor, nn

import rbnorm
from rbnorm.models.checkpoint import convert_state
from rbnorm.models.files import read_state
from rbnorm_cli.main import main


class Net(nn.Module):
    """Every kind of BatchNorm, and a name that ends like one of its entries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.bare = nn.BatchNorm2d(4, affine=False)
        self.tied = nn.BatchNorm2d(4)
        self.tied.weight = self.norm.weight
        self.head = nn.Sequential(nn.Linear(144, 5), nn.BatchNorm1d(5))


def batchnorm() -> nn.Module:
    torch.manual_seed(0)
    return shake(Net()).eval()


def save(state: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        own = {name: tensor.clone() for name, tensor in state.items()}
        path.write_bytes(safetensors.torch.save(own))
    else:
        torch.save(state, path)
    return path


def convert(source: Path, target: Path) -> dict[str, Tensor]:
    assert main(["convert", str(source), str(target)]) == 0
    return read_state(target)


@pytest.mark.parametrize("source", ["in.safetensors", "in.pt"])
@pytest.mark.parametrize("target", ["out.safetensors", "out.pth"])
def test_file_is_what_converting_the_model_gives(source, target, tmp_path, capsys) -> None:
    state = convert(save(batchnorm().state_dict(), tmp_path / source), tmp_path / target)
    assert capsys.readouterr().out == (
        f"{tmp_path / target}: 4 BatchNorm layers became RBN of the same function\n"
    )
    expected = rbnorm.convert_batchnorm(batchnorm()).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_checkpoint_of_a_training_script(key: str, tmp_path) -> None:
    state = batchnorm().state_dict()
    source = save({"epoch": 3, key: state, "optimizer": {}}, tmp_path / "in.pt")
    assert "norm.center_weight" in convert(source, tmp_path / "out.pt")


def test_official_file_gets_flat_vectors(tmp_path, capsys) -> None:
    model = rbnorm.convert_batchnorm(batchnorm())
    nn.init.normal_(model.norm.center_weight)
    expected = model.state_dict()
    official = {
        name: tensor.view(1, -1, 1, 1) if tensor.ndim == 1 and "running" not in name else tensor
        for name, tensor in expected.items()
        if not name.startswith(("stem", "head"))
    }
    state = convert(save(official, tmp_path / "in.pt"), tmp_path / "out.safetensors")
    assert "3 RBN layers in the official implementation's shapes" in capsys.readouterr().out
    assert all(torch.equal(state[name], expected[name]) for name in official)


def test_own_file_stays_as_it_is_with_its_batchnorm(tmp_path, capsys) -> None:
    model = rbnorm.convert_batchnorm(batchnorm(), where="norm", scale=False)
    expected = model.state_dict()
    state = convert(save(expected, tmp_path / "in.pt"), tmp_path / "out.pt")
    assert "1 RBN layers in rbnorm's own shapes already" in capsys.readouterr().out
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_state_dict_of_a_single_layer_in_half_precision() -> None:
    layer = shake(nn.BatchNorm2d(4)).half()
    state, _ = convert_state(layer.state_dict())
    expected = rbnorm.convert_batchnorm(layer).state_dict()
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert torch.equal(state["weight"], expected["weight"])


class Bomb:
    """Its pickle calls a function."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def truncated(path: Path, *, new: bool = True) -> None:
    state = batchnorm().state_dict()
    if path.suffix == ".pt":
        torch.save(state, path, _use_new_zipfile_serialization=new)
    else:
        save(state, path)
    path.write_bytes(path.read_bytes()[:-20])


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "b")


def changed(**entries: Tensor | None) -> Callable[[Path], object]:
    """A file of one layer with other entries, or without them."""
    state = rbnorm.convert_batchnorm(nn.BatchNorm2d(4)).state_dict() | entries
    kept = {f"bn.{name}": tensor for name, tensor in state.items() if tensor is not None}
    return lambda path: save(kept, path)


PLAIN = {"center_weight": None, "scale_weight": None, "scale_bias": None}
CODE = "holds objects that could run code when they are loaded, or is no checkpoint"
BROKEN = "is truncated or no checkpoint"
MISFIT = "has a layer 'bn' whose entries do not fit together (size mismatch for"
REFUSED = {
    "bomb.pt": (lambda path: torch.save({"a": Bomb()}, path), CODE),
    "pickled-bomb.pt": (lambda path: path.write_bytes(pickle.dumps({"a": Bomb()})), CODE),
    "model.pt": (lambda path: torch.save(batchnorm(), path), CODE),
    "noise.pt": (lambda path: path.write_bytes(b"\x93" * 999), CODE),
    "text.pt": (lambda path: path.write_text("no checkpoint\n" * 9), CODE),
    "empty.pt": (lambda path: path.touch(), BROKEN),
    "truncated.pt": (truncated, BROKEN),
    "legacy.pt": (lambda path: truncated(path, new=False), BROKEN),
    "archive.pt": (archive, BROKEN),
    "truncated.safetensors": (truncated, BROKEN),
    "empty.safetensors": (lambda path: path.touch(), BROKEN),
    "pickle.safetensors": (lambda path: torch.save({}, path), BROKEN),
    "folder.pt": (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
    "missing.pt": (lambda path: None, "cannot be read (No such file or directory)"),
    "list.pt": (lambda path: torch.save([torch.ones(3)], path), "holds no state dict"),
    "numbered.pt": (lambda path: torch.save({0: torch.ones(3)}, path), "holds no state dict"),
    "mixed.pt": (lambda path: torch.save({"a": 1, "b": torch.ones(3)}, path), "entry 'a' is a int"),
    "linear.pt": (lambda path: save(nn.Linear(2, 2).state_dict(), path), "has neither BatchNorm"),
    "nothing.safetensors": (lambda path: save({}, path), "has neither BatchNorm"),
    "weight.pt": (changed(weight=torch.ones(5), **PLAIN), MISFIT),
    "mean.pt": (changed(running_mean=torch.ones(1, 4, 1, 1), **PLAIN), MISFIT),
    "scalar.pt": (changed(running_var=torch.tensor(1.0), **PLAIN), MISFIT),
    "calibration.pt": (changed(scale_weight=torch.ones(2, 4)), MISFIT),
    "half.pt": (changed(scale_bias=None), 'Missing key(s) in state_dict: "scale_bias"'),
    "expanded.pt": (changed(weight=torch.ones(1).expand(2**40)), "4 bytes repeated to 439804651"),
    "integer.pt": (changed(weight=torch.ones(4, dtype=int), **PLAIN), "do not fit together"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_checkpoint_is_refused(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = REFUSED[name]
    make(Path(name))
    before = os.listdir(tmp_path)
    assert main(["convert", name, "out.safetensors"]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(f"rbnorm: {name} ")
    assert message in written.err
    assert written.err.count("\n") == 1
    assert os.listdir(tmp_path) == before


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("out.onnx", "out.onnx must end in .safetensors, .pt, .pth"),
        ("missing/out.pt", "missing/out.pt must be a file in a folder that exists"),
        ("in.pt", "in.pt must be another file than the one to convert"),
        ("/proc/out.pt", "/proc/out.pt cannot be written"),
    ],
)
def test_target_that_cannot_be_written(target, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    content = save(batchnorm().state_dict(), Path("in.pt")).read_bytes()
    assert main(["convert", "in.pt", target]) == 2
    written = capsys.readouterr().err
    assert message in written
    assert written.count("\n") == 1
    assert os.listdir(tmp_path) == ["in.pt"]
    assert Path("in.pt").read_bytes() == content


@pytest.mark.parametrize("source", ["in.pt", "missing.pt"])
def test_target_that_exists_is_left_when_something_fails(source, tmp_path, monkeypatch, capsys):
    save(batchnorm().state_dict(), tmp_path / "in.pt")
    target = tmp_path / "out.pt"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main(["convert", str(tmp_path / source), str(target)]) == 2
    said = {"in.pt": f"{target} cannot be written (No space left on device)"}
    missing = f"{tmp_path}/missing.pt cannot be read (No such file or directory)"
    assert capsys.readouterr().err == f"rbnorm: {said.get(source, missing)}.\n"
    assert sorted(os.listdir(tmp_path)) == ["in.pt", "out.pt"]
    assert target.read_bytes() == b"old"


def test_without_the_extra_pickled_files_are_converted(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    source = save(batchnorm().state_dict(), tmp_path / "in.pt")
    assert main(["convert", str(source), str(tmp_path / "out.pt")]) == 0
    assert main(["convert", str(source), str(tmp_path / "out.safetensors")]) == 2
    said = 'a .safetensors file needs safetensors: install it with pip install "rbnorm[lab]"'
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "out.pt"]
