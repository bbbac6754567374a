"""What is public: the names, their parameters, and files of released versions."""

import importlib
import inspect
import json
import pickle
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from tolerances import assert_close
from torch import nn

import rbnorm
from rbnorm import hub
from rbnorm_lab.store import Store

HERE = Path(__file__).resolve().parent
RELEASED = HERE / "released" / "0.1.0"
LIST = HERE / "public.txt"
MODULES = (
    "rbnorm",
    "rbnorm.diagnosis",
    "rbnorm.export",
    "rbnorm.functional",
    "rbnorm.hub",
    "rbnorm.remedy",
)


def parameters(thing: object) -> str:
    if not callable(thing):
        return ""
    try:
        found = inspect.signature(thing).parameters.values()
    except ValueError:
        return ""
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = [marks.get(parameter.kind, "") + parameter.name for parameter in found]
    return f"({', '.join(names)})"


def public() -> str:
    lines = []
    for module in map(importlib.import_module, MODULES):
        for name in sorted(module.__all__):
            thing = getattr(module, name)
            kind = "" if not inspect.ismodule(thing) else " module"
            lines.append(f"{module.__name__}.{name}{kind}{parameters(thing)}")
    return "\n".join(lines) + "\n"


def test_public_names_are_those_of_the_list() -> None:
    """After an intended change: PYTHONPATH=tests python -m test_public > tests/public.txt."""
    assert public().splitlines() == LIST.read_text().splitlines()


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
@torch.no_grad()
def test_pickles_of_released_versions_load(version: str) -> None:
    found = pickle.loads((RELEASED.parent / version / "layers.pickle").read_bytes())
    assert_close(found["model"](found["input"]), found["output"], torch.float32)
    assert type(found["model"][1]) is rbnorm.RepresentativeBatchNormAct2d
    assert pickle.loads(b"crbnorm.revert\nRevertReport\n.") is rbnorm.RevertReport
    lazy = found["lazy"]
    lazy(found["input"][:, :, None])
    assert type(lazy) is rbnorm.RepresentativeBatchNorm3d
    assert torch.equal(torch.empty_like(found["deferred"].scale_bias, device="cpu"), torch.ones(2))


@torch.no_grad()
def test_state_dict_of_0_1_0_gives_the_output_it_gave() -> None:
    state = safetensors.torch.load_file(RELEASED / "layers.safetensors")
    x, expected = state.pop("input"), state.pop("output")
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        rbnorm.RepresentativeBatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        rbnorm.RepresentativeBatchNorm2d(4, restrict="tanh"),
    )
    net.load_state_dict(state)
    assert_close(net.eval()(x), expected, torch.float32)


def test_hub_folder_of_0_1_0_loads(tmp_path: Path) -> None:
    shutil.copy(RELEASED / "config.json", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rbnorm"]["version"] == "0.1.0"
    model = timm.create_model("test_efficientnet", num_classes=3)
    model = rbnorm.convert_batchnorm(model, restrict="tanh", scale_weight_init=0.25, preserve=False)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = hub.load(timm.create_model("test_efficientnet", num_classes=3), tmp_path)
    assert loaded.bn1.calibration.restrict == "tanh"
    assert loaded.bn1.calibration.scale_weight_init == 0.25
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_records_of_0_1_0_load(tmp_path: Path) -> None:
    shutil.copy(RELEASED / "records.jsonl", tmp_path)
    records = Store(tmp_path).records
    assert [record.config.norm for record in records.values()] == ["bn", "rbn"]
    assert all(record.epochs[-1].test_accuracy > 0.9 for record in records.values())


if __name__ == "__main__":
    print(public(), end="")
