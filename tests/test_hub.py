"""timm's models with RBN in folders: written, and loaded by name."""

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
from rbnorm.hub import from_pretrained, load, save, save_pretrained


def model(name: str = "resnet10t") -> nn.Module:
    torch.manual_seed(0)
    return shake(timm.create_model(name, num_classes=7))


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050.lamb_in1k"])
@torch.no_grad()
def test_model_comes_back(name: str, tmp_path) -> None:
    saved, x = calibrate(rbnorm.convert_batchnorm(model(name))), torch.randn(2, 3, 64, 64)
    save_pretrained(saved, tmp_path / "new" / "folder", name, num_classes=7)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["config.json", "model.safetensors"]
    loaded = from_pretrained(tmp_path / "new" / "folder")
    assert not loaded.training
    assert torch.equal(loaded(x), saved(x))


@torch.no_grad()
def test_every_layer_keeps_its_options(tmp_path) -> None:
    """Those of its construction, and what was set afterwards."""
    saved = rbnorm.convert_batchnorm(model(), where="layer1.*", scale=False)
    rbnorm.convert_batchnorm(saved, False, where="layer2.*", restrict="tanh", scale_bias_init=2)
    first, second = saved.layer1[0].bn1, saved.layer2[0].bn1
    nn.init.normal_(second.center_weight)
    first.eps, first.momentum, second.momentum = 0.5, None, 0.25
    rbnorm.freeze(second)
    save_pretrained(saved.eval(), tmp_path, "resnet10t", num_classes=7)
    loaded = from_pretrained(tmp_path)
    for name, layer in saved.named_modules():
        other = loaded.get_submodule(name)
        assert type(other) is type(layer)
        for key in ("calibration", "eps", "momentum", "frozen_stats"):
            assert getattr(other, key, None) == getattr(layer, key, None)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(x), saved(x))


@pytest.mark.parametrize(
    ("make", "name", "arguments", "message"),
    [
        (model, "resnet10t", {"num_classes": 7}, "model must have an RBN layer, got ResNet"),
        (None, "resnet10t", {"num_classes": 8}, "size mismatch for fc.weight"),
        (None, "resnet18", {"num_classes": 7}, "ResNet has no BatchNorm at 'conv1.1'"),
        (None, "resnet81", {}, "name must be one of timm's models, got 'resnet81'"),
        (None, "resnet10t", {"pretrained": True}, "model_args must not have 'pretrained'"),
        (
            None,
            "resnet10t",
            {"num_classes": 7, "act_layer": nn.ReLU},
            "model_args must be of JSON's types",
        ),
        (None, "resnet10t", {"num_classes": 10**9}, "must not have numbers above 1048576"),
    ],
)
def test_model_that_could_not_be_loaded_is_refused(
    make, name, arguments, message, tmp_path
) -> None:
    saved = make() if make else rbnorm.convert_batchnorm(model())
    with pytest.raises(ValueError, match=message):
        save_pretrained(saved, tmp_path / "out", name, **arguments)
    assert not (tmp_path / "out").exists()


class Counting(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"count": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
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


def edit(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), "must hold config.json and model"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "must hold config.json and"),
        (lambda f: edit(f, architecture="hf-hub:someone/model"), "must be one of timm's models"),
        (lambda f: edit(f, model_args={"checkpoint_path": "a"}), "not have 'checkpoint_path'"),
        (lambda f: edit(f, model_args={"wings": 2}), "wings"),
        (lambda f: edit(f, model_args={"num_classes": 8}), "size mismatch for fc.weight"),
        (lambda f: edit(f, rbnorm={"layers": {"bn1": {"wings": 2}}}), "unknown option 'wings'"),
        (lambda f: edit(f, rbnorm={}), "layers"),
        (lambda f: edit(f, rbnorm={"layers": {"bn1": [1]}}), "'bn1' in the record: cannot"),
        (
            lambda f: edit(f, rbnorm={"layers": {"bn1": {"eps": "1"}}}),
            "layer 'bn1' in the record: '<='",
        ),
        (
            lambda f: edit(f, rbnorm={"layers": {"bn1": {"momentum": "a"}}}),
            "in the record: must be",
        ),
        (lambda f: edit(f, rbnorm={"layers": {"bn1": {"statistic": []}}}), "in the record"),
        (lambda f: edit(f, model_args={"num_classes": 2**40}), "numbers above 1048576"),
        (lambda f: edit(f, model_args={"layers": [2**20, 1, 1, 1]}), "ask for far more than the"),
        (lambda f: edit(f, model_args={"num_classes": 2**20}), "size mismatch for fc.weight"),
        (lambda f: (f / "config.json").write_text("[" * 99999), "must hold config.json and model"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), "must hold config.json and model"),
        (lambda f: (f / "config.json").write_text("[]"), "must hold a model of save_pretrained"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                safetensors.torch.save({"a": torch.ones(1)})
            ),
            "Missing key",
        ),
    ],
)
def test_spoilt_folder_is_refused(spoil, message, tmp_path) -> None:
    save_pretrained(rbnorm.convert_batchnorm(model()), tmp_path, "resnet10t", num_classes=7)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)


def test_missing_folder(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_pretrained(tmp_path / "nowhere")


@torch.no_grad()
def test_folder_inside_a_device_context(tmp_path) -> None:
    """Whatever the default device is, the model is on the CPU with its values."""
    saved = calibrate(rbnorm.convert_batchnorm(model()))
    with torch.device("meta"):
        save_pretrained(saved, tmp_path, "resnet10t", num_classes=7)
        loaded = from_pretrained(tmp_path)
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
