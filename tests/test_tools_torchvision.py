"""torchvision's models with RBN layers; each test is a row of docs/tools.md."""

from collections.abc import Callable

import pytest
import torch
from models import norms
from torch import nn
from torchvision import models
from torchvision.models import detection, segmentation
from torchvision.models.detection import backbone_utils
from torchvision.models.feature_extraction import create_feature_extractor

import rbnorm
from rbnorm import RepresentativeBatchNorm2d

CALIBRATION = ("center_weight", "scale_weight", "scale_bias")


def assert_all_rbn(model: nn.Module) -> None:
    assert len(norms(model)) == len(rbnorm.assert_intact(model)) > 10


def assert_learns(model: nn.Module, loss: Callable[[], torch.Tensor], lr: float) -> None:
    """Steps reduce the loss, and every calibration parameter has a finite gradient."""
    optimizer = torch.optim.SGD(rbnorm.parameter_groups(model, 1e-4), lr, momentum=0.9)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(loss())
        losses[-1].backward()
        for name, layer in model.named_modules():
            if isinstance(layer, RepresentativeBatchNorm2d):
                for key in CALIBRATION:
                    grad = getattr(layer, key).grad
                    assert grad is not None, f"{name}.{key}"
                    assert grad.isfinite().all()
                    assert grad.any(), f"{name}.{key}"
        optimizer.step()
    assert losses[-1] < losses[0]


BUILDERS = [
    models.resnet18,
    models.mobilenet_v2,
    models.mobilenet_v3_small,
    models.regnet_y_400mf,
    models.efficientnet_b0,
]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_norm_layer_argument(build: type[nn.Module]) -> None:
    """The model that conversion makes: the same layers and the same output."""
    torch.manual_seed(0)
    built = build(norm_layer=RepresentativeBatchNorm2d)
    torch.manual_seed(0)
    converted = rbnorm.convert_batchnorm(build(), preserve=False)
    assert_all_rbn(built)
    for (name, ours), theirs in zip(built.named_modules(), converted.modules(), strict=True):
        assert type(ours) is type(theirs), name
        if isinstance(ours, RepresentativeBatchNorm2d):
            theirs.eps, theirs.momentum = ours.eps, ours.momentum  # bound to torchvision's default
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(1)
    actual = built(x)
    torch.manual_seed(1)
    assert torch.equal(actual, converted(x))
    actual.square().sum().backward()
    assert all(layer.center_weight.grad is not None for layer in norms(built))


def test_densenet_has_no_such_argument() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'norm_layer'"):
        models.densenet121(norm_layer=RepresentativeBatchNorm2d)
    assert_all_rbn(rbnorm.convert_batchnorm(models.densenet121(), preserve=False))


def test_zero_init_residual() -> None:
    model = models.resnet18(norm_layer=RepresentativeBatchNorm2d, zero_init_residual=True)
    assert not model.layer1[0].bn2.weight.any()
    assert model.layer1[0].bn1.weight.all()


def test_feature_extractor() -> None:
    model = models.resnet18(norm_layer=RepresentativeBatchNorm2d).eval()
    x = torch.randn(1, 3, 32, 32)
    features = create_feature_extractor(model, {"layer4": "deep", "fc": "out"}).eval()(x)
    assert features["deep"].shape == (1, 512, 1, 1)
    assert torch.equal(features["out"], model(x))


def detector() -> nn.Module:
    torch.manual_seed(0)
    body = models.resnet18(norm_layer=RepresentativeBatchNorm2d)
    backbone = backbone_utils._resnet_fpn_extractor(body, trainable_layers=5)
    few = {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20}
    return detection.FasterRCNN(backbone, 3, min_size=64, max_size=64, **few)


def test_faster_rcnn_learns() -> None:
    """Two images of different sizes, one and two boxes: steps reduce the loss."""
    model = detector()
    assert_all_rbn(model)
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    boxes = [torch.tensor([[5.0, 5, 30, 40]]), torch.tensor([[10.0, 8, 50, 40], [1, 1, 20, 20]])]
    labels = [torch.tensor([1]), torch.tensor([2, 1])]
    targets = [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)]
    assert_learns(model, lambda: sum(model(images, targets).values()), lr=0.01)
    assert len(model.eval()(images)) == 2


def test_detection_builder_ignores_the_argument() -> None:
    """It has a parameter for everything else; so RBN is not lost but was never there."""
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, norm_layer=RepresentativeBatchNorm2d
    )
    assert rbnorm.assert_intact(model) == []
    rbnorm.convert_batchnorm(model, preserve=False)
    assert_all_rbn(model)


def test_deeplab_learns() -> None:
    torch.manual_seed(0)
    model = segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    rbnorm.convert_batchnorm(model, preserve=False)
    assert_all_rbn(model)
    x, masks = torch.rand(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
    assert_learns(model, lambda: nn.functional.cross_entropy(model(x)["out"], masks), lr=0.02)
