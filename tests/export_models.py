"""Converted models whose calibration does something, for the tests of exporting."""

import torch
import torchvision
from models import norms, shake
from torch import Tensor, nn

import rbnorm


def calibrate(model: nn.Module) -> nn.Module:
    """Random calibration parameters for every RBN layer; evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for layer in norms(model):
        for name, spread in (("center_weight", 0.3), ("scale_weight", 0.5), ("scale_bias", 0.5)):
            vector = getattr(layer, name, None)
            if vector is not None:
                vector.data.normal_(0, spread, generator=generator)
    return model.eval()


def trained(model: nn.Module) -> nn.Module:
    """A model converted, with a calibration, weights and statistics to lose."""
    return calibrate(rbnorm.convert_batchnorm(shake(model)))


def converted(name: str) -> nn.Module:
    """A torchvision model of random weights as RBN."""
    torch.manual_seed(0)
    model = shake(torchvision.models.get_model(name, weights=None, num_classes=10))
    return calibrate(rbnorm.convert_batchnorm(model))


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((actual - expected).abs().max() / expected.abs().max())
