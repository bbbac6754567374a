"""Models that are saved and loaded, or trained, through a library's own door."""

import copy
from pathlib import Path

import torch
from models import calibrate, trained
from torch import nn

import rbnorm.hub
from rbnorm.layers.base import rbn_layers


def resnet(*bases: type) -> tuple[type, object]:
    from transformers import ResNetConfig, ResNetForImageClassification

    small = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "num_labels": 3}
    return type("Model", (*bases, ResNetForImageClassification), {}), ResNetConfig(**small)


@torch.no_grad()
def test_transformers_model_comes_back(tmp_path: Path) -> None:
    from rbnorm.integrations.transformers import RepresentativeBatchNormMixin

    kind, config = resnet(RepresentativeBatchNormMixin)
    model = trained(kind(config))
    rbn_layers(model)[0][1].eps = 0.25
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x).logits, model(x).logits)
    assert rbn_layers(loaded)[0][1].eps == 0.25


@torch.no_grad()
def test_transformers_fills_a_calibration_that_no_checkpoint_has(tmp_path: Path) -> None:
    """A BatchNorm checkpoint into a class that converts as it is built."""
    kind, config = resnet()
    kind(config).save_pretrained(tmp_path)

    class Converting(kind):
        def __init__(self, config: object) -> None:
            super().__init__(config)
            rbnorm.convert_batchnorm(self, preserve=False, scale_bias_init=2.0)

    loaded = Converting.from_pretrained(tmp_path)
    for _, layer in rbn_layers(loaded):
        assert not layer.center_weight.any()
        assert not layer.scale_weight.any()
        assert (layer.scale_bias == 2).all()


@torch.no_grad()
def test_segmentation_model_comes_back(tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    model = trained(smp.Unet("resnet18", encoder_weights=None, classes=3))
    rbnorm.hub.save(model, tmp_path)
    loaded = rbnorm.hub.load(smp.Unet("resnet18", encoder_weights=None, classes=3), tmp_path)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded.eval()(x), model(x))


def trainer() -> object:
    from ultralytics.models.yolo.detect import DetectionTrainer

    from rbnorm.integrations.ultralytics import RepresentativeBatchNormTrainer

    class Trainer(RepresentativeBatchNormTrainer, DetectionTrainer):
        def __init__(self) -> None:
            self.data = {"nc": 3, "channels": 3, "names": dict(enumerate("abc"))}
            self.args = type("Args", (), {"model": "yolov8n.yaml"})()

    return Trainer()


@torch.no_grad()
def test_ultralytics_trainer_converts_after_loading() -> None:
    """BatchNorm's weights keep their function; RBN's come back with their calibration."""
    from ultralytics.nn.tasks import DetectionModel

    x = torch.randn(1, 3, 64, 64)
    plain = DetectionModel("yolov8n.yaml", nc=3, verbose=False).eval()
    model = trainer().get_model("yolov8n.yaml", plain, verbose=False).eval()
    assert len(rbnorm.assert_intact(model)) > 50
    torch.testing.assert_close(model(x)[0], plain(x)[0], rtol=1e-3, atol=1e-3)
    calibrate(model)
    again = trainer().get_model("yolov8n.yaml", model, verbose=False).eval()
    assert torch.equal(again(x)[0], model(x)[0])


@torch.no_grad()
def test_ultralytics_predicts_with_the_saved_model(tmp_path: Path) -> None:
    """Its loader fuses; the model, a copy and a file of it do not."""
    from ultralytics.nn.tasks import load_checkpoint

    model = calibrate(trainer().get_model("yolov8n.yaml", None, verbose=False))
    assert copy.deepcopy(model).fuse() is not model
    torch.save({"model": model, "train_args": {}}, tmp_path / "model.pt")
    loaded, _ = load_checkpoint(tmp_path / "model.pt", fuse=True)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(x)[0], model(x)[0])
    assert isinstance(loaded, nn.Module)
