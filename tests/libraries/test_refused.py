"""Other people's functions that take a BatchNorm from an RBN layer."""

from collections.abc import Callable

import pytest
import torch
from models import trained
from torch import nn

import rbnorm


def pair() -> nn.Sequential:
    return trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


def refused(tool: Callable[..., object], *arguments: object, by: str = "") -> None:
    with pytest.raises(ValueError, match=f"{by} knows only BatchNorm and would lose"):
        tool(*arguments)


def test_ultralytics_fuse() -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = trained(DetectionModel("yolov8n.yaml", verbose=False))
    refused(model.fuse, by="fuse_conv_and_bn of ultralytics")
    assert rbnorm.assert_intact(model)


def test_mmcv_fuse_conv_bn() -> None:
    from mmcv.cnn import fuse_conv_bn

    model = pair()
    refused(fuse_conv_bn, model, by="_fuse_conv_bn of mmcv")
    assert rbnorm.assert_intact(model)


def test_mmcv_efficient_conv_bn_eval() -> None:
    from mmcv.cnn import ConvModule

    model = trained(ConvModule(3, 4, 3, norm_cfg={"type": "BN"}, efficient_conv_bn_eval=True))
    refused(model, torch.randn(1, 3, 5, 5), by="efficient_conv_bn_eval_forward of mmcv")


def test_mmengine_efficient_conv_bn_eval() -> None:
    from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval

    model = nn.Sequential(pair())
    turn_on_efficient_conv_bn_eval(model, ["0"])
    refused(model, torch.randn(1, 3, 5, 5), by="efficient_conv_bn_eval_forward of mmengine")


def test_mmengine_convert_sync_batchnorm() -> None:
    from mmengine.model import convert_sync_batchnorm

    refused(convert_sync_batchnorm, pair(), by="convert_sync_batchnorm of mmengine")


@pytest.mark.parametrize("kind", ["detr", "conditional_detr", "rt_detr"])
def test_transformers_replace_batch_norm(kind: str) -> None:
    import importlib

    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    model = pair()
    refused(module.replace_batch_norm, model, by="replace_batch_norm of transformers")
    assert rbnorm.assert_intact(model)


def test_segmentation_models_reparameterize() -> None:
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.encoders.mobileone import reparameterize_model

    model = trained(smp.Unet("mobileone_s0", encoder_weights=None))
    refused(reparameterize_model, model, by="_fuse_bn_tensor of segmentation_models_pytorch")


def test_torch_pruning_without_our_pruner() -> None:
    import torch_pruning as tp

    model = pair()
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 3, 9, 9))
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [1])
    with pytest.raises(ValueError, match=r"pass customized_pruners=rbnorm\.integrations"):
        group.prune()


def test_lightning_sync_batchnorm() -> None:
    from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm

    with pytest.raises(ValueError, match=r"use rbnorm\.convert_sync\(model\)"):
        TorchSyncBatchNorm().apply(pair())


def test_precise_batchnorm_passes() -> None:
    """fvcore's and mmpretrain's: the running statistics of z over three equal batches."""
    from fvcore.nn.precise_bn import update_bn_stats

    model = pair().train()
    x = torch.randn(4, 3, 8, 8)
    update_bn_stats(model, [x] * 3, 3)
    u, layer = model[0](x), model[1]
    z = u + layer.center_weight[:, None, None] * u.mean((2, 3), keepdim=True)
    torch.testing.assert_close(layer.running_mean, z.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
