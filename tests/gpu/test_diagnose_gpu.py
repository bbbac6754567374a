"""``diagnose`` on a GPU, against the same on the CPU."""

import pytest
import torch
import torchvision
from models import shake

import rbnorm

pytestmark = pytest.mark.gpu


def test_a_gpu_finds_what_the_cpu_finds() -> None:
    torch.manual_seed(0)
    model = rbnorm.convert_batchnorm(shake(torchvision.models.resnet18(num_classes=10))).double()
    batches = [
        (torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.arange(4) + i) for i in range(3)
    ]
    expected = rbnorm.diagnose(model, batches)
    state = torch.cuda.get_rng_state()
    found = rbnorm.diagnose(model.cuda(), batches)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    for layer, own in zip(found.layers, expected.layers, strict=True):
        assert layer.values == pytest.approx(own.values, rel=1e-6, abs=1e-8, nan_ok=True)
