"""Models by name, with the normaliser swapped in before training."""

import difflib
import re
from typing import Any, Final

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3
from torchvision.models.segmentation.lraspp import LRASPPHead

from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.names import LRASPP
from rbnorm_lab.norms import swap

SMALL: Final = "small:"
"""Before the name of a network that is to be adapted to small images."""
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


class LrasppMobileNetV2(nn.Module):
    """LR-ASPP (Howard et al., 2019) on MobileNetV2 with torchvision's ImageNet weights.

    The features are those of stride 8, and of stride 16 before the 160 channels begin.

    Args:
        classes: Classes of a pixel.

    Raises:
        UsageError: The weights are not in torch's cache and cannot be downloaded.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        network = mobilenet_v2()
        try:
            state = MobileNet_V2_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
        except OSError as error:
            raise UsageError(
                f"the weights of MobileNetV2 cannot be downloaded ({first_line(error)}): put "
                f"their file into {torch.hub.get_dir()}/checkpoints"
            ) from error
        network.load_state_dict(state)
        self.low, self.high = network.features[:7], network.features[7:14]
        self.head = LRASPPHead(32, 96, classes, 128)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes, H, W) of images (N, 3, H, W)."""
        low = self.low(images)
        scores = self.head({"low": low, "high": self.high(low)})
        return interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)


def _timm() -> Any:
    import timm  # noqa: PLC0415 - takes seconds to import, and most studies never need it

    return timm


def model_name(name: str) -> str:
    """The one spelling of a model's name.

    Args:
        name: ``cifar-resnetN`` with N = 6n + 2; or a classification model of torchvision or timm,
            as ``torchvision:NAME``, ``timm:NAME`` or just ``NAME``, which torchvision wins; or
            such a model adapted to small images, with ``small:`` before it; or, for segmentation,
            :data:`rbnorm_lab.names.LRASPP`.

    Raises:
        UsageError: There is no such model.
    """
    if match := _CIFAR_RESNET.fullmatch(name):
        depth = int(match[1])
        if depth < 8 or depth % 6 != 2:
            raise UsageError(f"{name} has no whole number of blocks: the depth is 8, 14, 20, ...")
        return name
    if name == LRASPP:
        return name
    small = SMALL if name.startswith(SMALL) else ""
    library, _, bare = name.removeprefix(small).rpartition(":")
    if library in ("", "torchvision") and bare in torchvision_models():
        return f"{small}torchvision:{bare}"
    if library in ("", "timm") and _timm().is_model(bare):
        return f"{small}timm:{bare}"
    known = ["cifar-resnet8", "cifar-resnet20", LRASPP, *torchvision_models()]
    close = difflib.get_close_matches(bare, dict.fromkeys([*known, *_timm().list_models()]), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "see torchvision's and timm's lists"
    raise UsageError(f"unknown model {name!r}: {hint}")


def torchvision_models() -> list[str]:
    """The names of torchvision's models for classification."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def needs_rgb(name: str) -> bool:
    """Whether the model of this canonical name only takes images of three channels."""
    return name.removeprefix(SMALL).startswith("torchvision:")


def build_model(name: str, norm: str, *, classes: int, channels: int, seed: int) -> nn.Module:
    """Build a model with random weights; only that for segmentation has some of ImageNet.

    The model is built with BatchNorm and the normaliser swapped afterwards, so a seed means the
    same initial weights whatever the norm.

    Args:
        name: Canonical name of the model.
        norm: The norm; see :func:`rbnorm_lab.norms.canonical_norm`.
        classes: Number of classes.
        channels: Channels of the images.
        seed: Seed of the initial weights.

    Raises:
        UsageError: There is no such norm; the model has no BatchNorm to swap, or one that this norm
            cannot replace; or it has no strided convolution to adapt to small images.
    """
    torch.manual_seed(seed)
    model = _with_batchnorm(name.removeprefix(SMALL), classes, channels)
    if name.startswith(SMALL):
        _keep_resolution(name, model)
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UsageError(f"model {name} has no BatchNorm, so there is no norm to compare")
    return swap(model, norm)


def _with_batchnorm(name: str, classes: int, channels: int) -> nn.Module:
    if match := _CIFAR_RESNET.fullmatch(name):
        return CifarResNet((int(match[1]) - 2) // 6, classes, channels)
    if name == LRASPP:
        return LrasppMobileNetV2(classes)
    library, _, bare = name.partition(":")
    model: nn.Module
    if library == "torchvision":
        model = torchvision.models.get_model(bare, weights=None, num_classes=classes)
    else:
        model = _timm().create_model(bare, num_classes=classes, in_chans=channels)
    return model


def _keep_resolution(name: str, model: nn.Module) -> None:
    """Take the stride from the first convolution that has one, and from a pooling that is next."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d))]
    strided = [layer for layer in layers if layer.stride not in (1, (1, 1))]
    if not (strided and isinstance(strided[0], nn.Conv2d)):
        raise UsageError(
            f"model {name} does not exist: small: takes the stride from a network's first strided "
            "convolution, and this one has none before its pooling"
        )
    for layer in strided[:1] + [layer for layer in strided[1:2] if isinstance(layer, nn.MaxPool2d)]:
        layer.stride = (1, 1)
