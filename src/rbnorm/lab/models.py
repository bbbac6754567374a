"""Models by name, with the normaliser swapped in before training."""

import difflib
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

from rbnorm.convert import convert_batchnorm
from rbnorm.lab.errors import UsageError

_CIFAR_RESNET: Final = re.compile(r"cifar-resnet(\d+)")


class CifarResNet(nn.Module):
    """The residual network for small images of He et al. (2015), section 4.2.

    Args:
        blocks: Residual blocks in each of the three stages; the depth is ``6 * blocks + 2``.
        classes: Number of classes.
        channels: Channels of the images.
    """

    def __init__(self, blocks: int, classes: int, channels: int) -> None:
        super().__init__()
        widths = (16, 32, 64)
        self.conv1 = conv3x3(channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential(
            *(
                _stage(blocks, width_in, width_out)
                for width_in, width_out in zip((widths[0], *widths), widths, strict=False)
            )
        )
        self.fc = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, C, H, W)."""
        features = self.stages(self.bn1(self.conv1(images)).relu())
        scores: Tensor = self.fc(features.mean((2, 3)))
        return scores


def _stage(blocks: int, width_in: int, width_out: int) -> nn.Sequential:
    stride = 1 if width_in == width_out else 2
    shortcut = (
        nn.Sequential(conv1x1(width_in, width_out, stride), nn.BatchNorm2d(width_out))
        if stride > 1
        else None
    )
    first = BasicBlock(width_in, width_out, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width_out, width_out) for _ in range(blocks - 1)))


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _timm() -> Any:
    import timm  # noqa: PLC0415 - takes seconds to import, and most studies never need it

    return timm


def canonical_name(name: str) -> str:
    """The one spelling of a model's name.

    Args:
        name: ``cifar-resnetN`` with N = 6n + 2; or a classification model of torchvision or timm,
            as ``torchvision:NAME``, ``timm:NAME`` or just ``NAME``, which torchvision wins.

    Raises:
        UsageError: There is no such model.
    """
    if match := _CIFAR_RESNET.fullmatch(name):
        depth = int(match[1])
        if depth < 8 or depth % 6 != 2:
            raise UsageError(f"{name} has no whole number of blocks: the depth is 8, 14, 20, ...")
        return name
    library, _, bare = name.rpartition(":")
    if library in ("", "torchvision") and bare in _torchvision_names():
        return f"torchvision:{bare}"
    if library in ("", "timm") and _timm().is_model(bare):
        return f"timm:{bare}"
    known = ["cifar-resnet8", "cifar-resnet20", *_torchvision_names(), *_timm().list_models()]
    close = difflib.get_close_matches(bare, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "see torchvision's and timm's lists"
    raise UsageError(f"unknown model {name!r}: {hint}")


def needs_rgb(name: str) -> bool:
    """Whether the model of this canonical name only takes images of three channels."""
    return name.startswith("torchvision:")


def build_model(name: str, norm: str, *, classes: int, channels: int, seed: int) -> nn.Module:
    """Build a model of randomly initialised weights.

    The model is built with BatchNorm and the normaliser swapped afterwards, so a seed means the
    same initial weights whatever the norm.

    Args:
        name: Canonical name of the model.
        norm: One of :data:`rbnorm.lab.config.NORMS`.
        classes: Number of classes.
        channels: Channels of the images.
        seed: Seed of the initial weights.

    Raises:
        UsageError: The model has no BatchNorm to swap, or one this norm cannot replace.
    """
    torch.manual_seed(seed)
    library, _, bare = name.rpartition(":")
    model: nn.Module
    if match := _CIFAR_RESNET.fullmatch(name):
        model = CifarResNet((int(match[1]) - 2) // 6, classes, channels)
    elif library == "torchvision":
        model = torchvision.models.get_model(bare, weights=None, num_classes=classes)
    else:
        model = _timm().create_model(bare, num_classes=classes, in_chans=channels)
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UsageError(f"model {name} has no BatchNorm, so there is no norm to compare")
    return SWAPS[norm](model)


def _group_norm(layer: _BatchNorm, most_groups: int) -> nn.Module:
    channels = layer.num_features
    groups = next(g for g in range(min(channels, most_groups), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, layer.eps, layer.affine)


def _instance_norm(layer: _BatchNorm) -> nn.Module:
    if not isinstance(layer, nn.BatchNorm2d):
        raise UsageError(f"norm 'in' replaces BatchNorm2d, and the model has {layer!r}")
    return nn.InstanceNorm2d(layer.num_features, layer.eps, affine=layer.affine)


def _replace(make: Callable[[_BatchNorm], nn.Module], model: nn.Module) -> nn.Module:
    """Put ``make(layer)`` in the place of every BatchNorm, one for each even where it is shared."""
    made: dict[_BatchNorm, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, _BatchNorm):
                if child not in made:
                    made[child] = _replacement(child, make)
                parent._modules[name] = made[child]
    return model


def _replacement(layer: _BatchNorm, make: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    norm = make(layer)
    if layer.affine:
        norm.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    # timm's BatchNormAct2d is also the dropout and the activation that follow it
    after = [module for name, module in layer.named_children() if name in ("drop", "act")]
    return nn.Sequential(norm, *after) if after else norm


def _keep(model: nn.Module) -> nn.Module:
    return model


SWAPS: Final[dict[str, Callable[[nn.Module], nn.Module]]] = {
    "bn": _keep,
    "gn": partial(_replace, partial(_group_norm, most_groups=32)),
    "ln": partial(_replace, partial(_group_norm, most_groups=1)),
    "in": partial(_replace, _instance_norm),
    "rbn": partial(convert_batchnorm, preserve=False),
    "rbn-center": partial(convert_batchnorm, preserve=False, scale=False),
    "rbn-scale": partial(convert_batchnorm, preserve=False, center=False),
}
"""The normalisers: each turns a model built with BatchNorm into one that has this norm instead."""
