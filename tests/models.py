"""Models for the tests of conversion and of export, and what must be left of one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import rbnorm


def shake(model: nn.Module) -> nn.Module:
    """Random affine parameters and buffers, so that a conversion has something to preserve."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.weight is not None:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1, generator=generator)
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


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
    import torchvision  # noqa: PLC0415 - seconds, in every process

    torch.manual_seed(0)
    model = shake(torchvision.models.get_model(name, weights=None, num_classes=10))
    return calibrate(rbnorm.convert_batchnorm(model))


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((actual - expected).abs().max() / expected.abs().max())


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Values, flags, hooks, momenta and random numbers are afterwards what they were."""

    def state():
        plain = [
            (m.training, getattr(m, "momentum", None), [*m._forward_pre_hooks, *m._forward_hooks])
            for m in model.modules()
        ]
        tensors = [tensor.clone() for tensor in model.state_dict().values()]
        return plain, [*tensors, torch.get_rng_state()]

    plain, tensors = state()
    yield
    found, others = state()
    assert found == plain
    assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))
