"""Models with RBN in folders: written, and loaded into what their code builds."""

import copy
import json
import os

import pytest
import safetensors.torch
import timm
import torch
from models import calibrate, shake
from torch import nn

import rbnorm
from rbnorm.hub import load, save


def model(name: str = "resnet10t") -> nn.Module:
    torch.manual_seed(0)
    return shake(timm.create_model(name, num_classes=7))


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050.lamb_in1k"])
@torch.no_grad()
def test_model_comes_back(name: str, tmp_path) -> None:
    saved, x = calibrate(rbnorm.convert_batchnorm(model(name))), torch.randn(2, 3, 64, 64)
    save(saved, tmp_path / "new" / "folder")
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["model.safetensors", "rbnorm.json"]
    loaded = load(model(name), tmp_path / "new" / "folder")
    assert loaded.training
    assert torch.equal(loaded.eval()(x), saved(x))


@torch.no_grad()
def test_every_layer_keeps_its_options(tmp_path) -> None:
    """Those of its construction, and what was set afterwards."""
    saved = rbnorm.convert_batchnorm(model(), where="layer1.*", scale=False)
    rbnorm.convert_batchnorm(saved, False, where="layer2.*", restrict="tanh", scale_bias_init=2)
    first, second = saved.layer1[0].bn1, saved.layer2[0].bn1
    nn.init.normal_(second.center_weight)
    first.eps, first.momentum, second.momentum = 0.5, None, 0.25
    rbnorm.freeze(second)
    save(saved.eval(), tmp_path)
    loaded = load(model(), tmp_path).eval()
    for name, layer in saved.named_modules():
        other = loaded.get_submodule(name)
        assert type(other) is type(layer)
        for key in ("calibration", "eps", "momentum", "frozen_stats"):
            assert getattr(other, key, None) == getattr(layer, key, None)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(x), saved(x))


class Counting(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"count": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rbnorm.revert_batchnorm, "model must have an RBN layer, got Sequential"),
        (lambda model: model.to("meta"), "is on the device meta, which has no memory"),
        (lambda model: model.append(Counting()), r"entry '4\._extra_state' is a dict"),
        (
            lambda model: rbnorm.convert_batchnorm(
                model.append(nn.BatchNorm2d(4)), restrict=torch.sigmoid
            ),
            r"restrict of layer '4' must be a name",
        ),
    ],
)
def test_model_that_no_file_can_hold_is_refused(change, message, tmp_path) -> None:
    saved = rbnorm.convert_batchnorm(own())
    change(saved)
    with pytest.raises(ValueError, match=message):
        save(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def edit(folder, layers: object) -> None:
    record = json.loads((folder / "rbnorm.json").read_text())
    (folder / "rbnorm.json").write_text(json.dumps({**record, "layers": layers}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "rbnorm.json").write_text("{"), "must hold what rbnorm.hub.save wrote"),
        (lambda f: (f / "rbnorm.json").write_text("[" * 99999), "nested too deeply"),
        (lambda f: (f / "rbnorm.json").write_bytes(b"\xff"), "must hold what rbnorm.hub"),
        (lambda f: (f / "rbnorm.json").write_text("[]"), "a record must be what record_layers"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "is truncated"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                safetensors.torch.save({"a": torch.ones(1)})
            ),
            "Missing key",
        ),
        (lambda f: edit(f, None), "a record must be what record_layers"),
        (lambda f: edit(f, {"bn1": {"wings": 2}}), "unknown option 'wings'"),
        (lambda f: edit(f, {"bn1": [1]}), "'bn1' in the record: cannot"),
        (lambda f: edit(f, {"bn1": {"eps": "1"}}), "layer 'bn1' in the record: '<='"),
        (lambda f: edit(f, {"bn1": {"momentum": "a"}}), "in the record: must be"),
        (lambda f: edit(f, {"bn1": {"statistic": []}}), "in the record"),
    ],
)
def test_spoilt_folder_is_refused(spoil, message, tmp_path) -> None:
    save(rbnorm.convert_batchnorm(model()), tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        load(model(), tmp_path)
    assert "\n" not in str(raised.value)


def test_folder_without_a_record(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"rbnorm\.json"):
        load(own(), tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"rbnorm\.json"):
        load(own(), tmp_path)


@torch.no_grad()
def test_folder_inside_a_device_context(tmp_path) -> None:
    """Whatever the default device is, the model has its values."""
    saved = calibrate(rbnorm.convert_batchnorm(model()))
    loaded = model().eval()
    with torch.device("meta"):
        save(saved, tmp_path)
        load(loaded, tmp_path)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(x), saved(x))


def own() -> nn.Module:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4), nn.SyncBatchNorm(4)]
    return shake(nn.Sequential(nn.Conv2d(2, 4, 3), *norms))


@torch.no_grad()
def test_any_model_comes_back(tmp_path) -> None:
    """Built by its own code, also on the meta device; a layer without gamma keeps its constant."""
    saved = calibrate(rbnorm.convert_batchnorm(own()))
    save(saved, tmp_path / "folder")
    assert sorted(os.listdir(tmp_path / "folder")) == ["model.safetensors", "rbnorm.json"]
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(load(own(), tmp_path / "folder").eval()(x), saved(x))
    assert torch.equal(load(copy.deepcopy(saved), tmp_path / "folder")(x), saved(x))
    other = rbnorm.convert_batchnorm(own(), scale=False)
    with pytest.raises(ValueError, match="layer '1' must have the recorded"):
        load(other, tmp_path / "folder")
    with pytest.raises(ValueError, match="got Sequential has no BatchNorm at '1'"):
        load(nn.Sequential(nn.Conv2d(2, 4, 3)), tmp_path / "folder")


def test_frozen_statistics_are_as_recorded() -> None:
    record = rbnorm.record_layers(rbnorm.convert_batchnorm(own()))
    model = rbnorm.freeze(rbnorm.convert_batchnorm(own()))
    rbnorm.convert_as_recorded(model, record)
    assert not model[1].frozen_stats


def test_record_of_a_refused_model_changes_nothing() -> None:
    record = rbnorm.record_layers(rbnorm.convert_batchnorm(own()))
    model = own()
    nn.utils.parametrizations.weight_norm(model[3])
    with pytest.raises(ValueError, match="layer '3' is a Parametrized"):
        rbnorm.convert_as_recorded(model, record)
    assert type(model[1]) is nn.BatchNorm2d
    with pytest.raises(ValueError, match="a record must be what record_layers returns"):
        rbnorm.convert_as_recorded(own(), {})
