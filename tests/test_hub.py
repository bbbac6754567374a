"""timm's models with RBN in folders: written, and loaded by name."""

import json
import os

import pytest
import safetensors.torch
import timm
import torch
from export_models import calibrate
from models import shake
from torch import nn

import rbnorm
from rbnorm.hub import from_pretrained, save_pretrained


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
    saved = rbnorm.convert_batchnorm(model(), where="layer1.*", scale=False)
    rbnorm.convert_batchnorm(saved, False, where="layer2.*", restrict="tanh", scale_bias_init=2)
    nn.init.normal_(saved.layer2[0].bn1.center_weight)
    save_pretrained(saved.eval(), tmp_path, "resnet10t", num_classes=7)
    loaded = from_pretrained(tmp_path)
    for name, layer in saved.named_modules():
        other = loaded.get_submodule(name)
        assert type(other) is type(layer)
        assert getattr(other, "calibration", None) == getattr(layer, "calibration", None)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(x), saved(x))


@pytest.mark.parametrize(
    ("make", "name", "arguments", "message"),
    [
        (model, "resnet10t", {"num_classes": 7}, "model must have an RBN layer, got ResNet"),
        (None, "resnet10t", {"num_classes": 8}, "got one that differs in fc.weight"),
        (None, "resnet18", {"num_classes": 7}, "resnet18 has no BatchNorm at 'conv1.1'"),
        (None, "resnet81", {}, "name must be one of timm's models, got 'resnet81'"),
        (None, "resnet10t", {"pretrained": True}, "model_args must not have 'pretrained'"),
        (None, "resnet10t", {"act_layer": nn.ReLU}, "model_args must be of JSON's types"),
    ],
)
def test_model_that_could_not_be_loaded_is_refused(
    make, name, arguments, message, tmp_path
) -> None:
    saved = make() if make else rbnorm.convert_batchnorm(model())
    with pytest.raises(ValueError, match=message):
        save_pretrained(saved, tmp_path / "out", name, **arguments)
    assert not (tmp_path / "out").exists()


def test_callable_option_is_refused(tmp_path) -> None:
    saved = rbnorm.convert_batchnorm(model(), restrict=torch.sigmoid)
    with pytest.raises(ValueError, match=r"restrict of layer 'conv1\.1' must be a name"):
        save_pretrained(saved, tmp_path, "resnet10t", num_classes=7)
    assert not os.listdir(tmp_path)


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
