"""RBN in other libraries' networks, and what they know of it."""

import pytest
import torch
from models import trained
from torch import nn

import rbnorm


def test_mmcv_builds_rbn_by_its_path() -> None:
    from mmcv.cnn import ConvModule, build_norm_layer

    path = "rbnorm.RepresentativeBatchNorm2d"
    layer = build_norm_layer({"type": path, "scale": False}, 4)[1]
    assert (type(layer), layer.scale_weight) == (rbnorm.RepresentativeBatchNorm2d, None)
    module = ConvModule(3, 4, 3, norm_cfg={"type": path, "requires_grad": True})
    assert type(module.norm) is rbnorm.RepresentativeBatchNorm2d
    assert module(torch.randn(2, 3, 5, 5)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize("dim", [2, 3])
def test_monai_network_is_converted(dim: int) -> None:
    from monai.networks.nets import UNet

    sizes = {"channels": (4, 8), "strides": (2,), "in_channels": 1, "out_channels": 2}
    model = rbnorm.convert_batchnorm(UNet(spatial_dims=dim, norm="batch", **sizes))
    assert len(rbnorm.assert_intact(model)) == 2
    assert model(torch.randn(2, 1, *[8] * dim)).shape == (2, 2, *[8] * dim)


def test_opacus_refuses_rbn() -> None:
    """Without running statistics too, where nothing else would stop it."""
    from opacus.validators import ModuleValidator
    from opacus.validators.errors import UnsupportedModuleError

    model = nn.Sequential(rbnorm.RepresentativeBatchNorm2d(4, track_running_stats=False))
    with pytest.raises(UnsupportedModuleError, match="cannot be trained with differential privacy"):
        ModuleValidator.validate(model, strict=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), rbnorm.RepresentativeBatchNormAct2d(4))
    fixed = ModuleValidator.fix(model)
    assert type(fixed[1]) is nn.GroupNorm
    assert ModuleValidator.is_valid(fixed)


def test_torch_pruning_takes_channels_out() -> None:
    """What is left computes what it did on these channels."""
    import torch_pruning as tp

    from rbnorm.integrations.torch_pruning import PRUNERS

    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)))
    x = torch.randn(2, 3, 9, 9)
    expected = model[:2](x)[:, [0, 2, 3]]
    graph = tp.DependencyGraph().build_dependency(model, x, customized_pruners=PRUNERS)
    graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [1]).prune()
    assert [p.shape for p in model[1].parameters()] == [(3,)] * 5
    torch.testing.assert_close(model[:2](x), expected)
    model(x).sum().backward()


def test_thop_counts_every_parameter() -> None:
    """With its own hook for normalisation, which counts four operations a value."""
    import thop
    from thop.vision.basic_hooks import count_normalization

    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x, hooks = torch.randn(2, 3, 6, 6), {rbnorm.RepresentativeBatchNorm2d: count_normalization}
    operations, parameters = thop.profile(model, (x,), custom_ops=hooks, verbose=False)
    conv = thop.profile(model[0], (x,), verbose=False)[0]
    assert parameters == sum(p.numel() for p in model.parameters())
    assert operations - conv == 4 * 2 * 4 * 4 * 4


def test_fvcore_names_what_it_leaves_out() -> None:
    from fvcore.nn import FlopCountAnalysis

    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    analysis = FlopCountAnalysis(model, torch.randn(2, 3, 6, 6))
    assert analysis.by_module()["1"] == 0
    assert {"aten::mean", "aten::mul", "aten::add"} <= analysis.unsupported_ops().keys()


def test_lightning_trains_synchronised() -> None:
    """sync_batchnorm=True refuses; synchronised by rbnorm, the trainer takes the model."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            norm = rbnorm.convert_sync(rbnorm.RepresentativeBatchNorm2d(2))
            self.model = nn.Sequential(norm, nn.Flatten(), nn.Linear(32, 2))

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return self.model(batch[0]).square().sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(rbnorm.parameter_groups(self, 1e-4), 1e-3)

    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(8, 2, 4, 4)), batch_size=4
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {**quiet, "max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False}
    module = Module()
    lightning.Trainer(strategy="ddp", devices=1, **options).fit(module, data)
    assert module.model[0].num_batches_tracked == 2
    with pytest.raises(ValueError, match=r"use rbnorm\.convert_sync\(model\)"):
        lightning.Trainer(strategy="ddp", devices=1, sync_batchnorm=True, **options).fit(
            Module(), data
        )
