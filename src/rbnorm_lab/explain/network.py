"""A network trained on parts of photographs, and what its first norm does to held-out ones."""

import base64
import io
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

import rbnorm
from rbnorm_lab.config import RunConfig
from rbnorm_lab.data import ImageData
from rbnorm_lab.explain.photographs import SIDE
from rbnorm_lab.models import CifarResNet
from rbnorm_lab.train import train_run

IMAGES: Final = 8
CHANNELS: Final = 4
_CONFIG: Final = RunConfig(
    data="photographs",
    model="cifar-resnet8",
    norm="rbn",
    batch_size=32,
    seed=0,
    epochs=5,
    lr=0.1,
    weight_decay=5e-4,
    trace=False,
)
CALIBRATION_RATE: Final = 4
"""Times the learning rate of the rest: the rate of the calibration, in so short a training."""


def trained(data: ImageData) -> tuple[CifarResNet, float]:
    """A ResNet-8 whose norms are RBN, in evaluation mode, and its accuracy on held-out parts."""
    kept: list[nn.Module] = []
    record = train_run(_CONFIG, data, on_trained=kept.append, groups=_groups)
    (model,) = kept
    assert isinstance(model, CifarResNet)
    return model.eval(), record.accuracy


def _groups(model: nn.Module, config: RunConfig) -> list[dict[str, Any]]:
    faster = {"lr": CALIBRATION_RATE * config.lr}
    return rbnorm.parameter_groups(model, config.weight_decay, calibration=faster)


@torch.no_grad()
def layer_facts(model: CifarResNet, data: ImageData) -> dict[str, Any]:
    """What the page draws: of the first norm, its inputs on some held-out images, and its numbers.

    The channels are those that more light makes largest, what RBN learnt most for first.
    A channel has the moments of the layer's input over all training parts: ``mean``; ``within``,
    the mean over instances of their variance; and ``between``, the variance of their means. The
    first convolution has no bias, so images of another contrast c and brightness b give
    ``c * map + b * response``.
    """
    layer: Any = model.bn1  # RBN, where the network was built with BatchNorm
    convolve = model.conv1
    x = convolve(_images(data.train)).double()
    means = x.mean((2, 3))
    mean, between = means.mean(0), means.var(0, unbiased=False)
    within = x.var((2, 3), unbiased=False).mean(0)
    std = torch.tensor(data.std)[:, None, None]
    response = convolve((torch.ones(3, SIDE, SIDE) / std)[None])[0]
    lit = response.mean((1, 2)) / (within + between).sqrt()
    channels = lit.topk(CHANNELS).indices
    channels = channels[layer.center_weight[channels].abs().argsort(descending=True)]
    held_out = _images(data.test)
    first = channels[0]
    seen = convolve(held_out)[:, first].double()
    variance = within[first] + between[first]
    offset = (seen.mean((1, 2)) - mean[first]) / variance.sqrt()
    images = held_out[_various(offset, seen.var((1, 2), unbiased=False) / variance)]
    maps = convolve(images)
    raw = images * std + torch.tensor(data.mean)[:, None, None]
    return {
        "side": SIDE,
        "eps": layer.eps,
        "image_mean": data.mean,
        "images": _strip(raw),
        "channels": [
            {
                "index": c,
                **{name: values[c].item() for name, values in _weights(layer).items()},
                "mean": mean[c].item(),
                "within": within[c].item(),
                "between": between[c].item(),
                "response": _packed(response[c]),
                "maps": [_packed(one) for one in maps[:, c]],
            }
            for c in channels.tolist()
        ],
    }


def _weights(layer: Any) -> dict[str, Tensor]:
    return {
        "w_m": layer.center_weight,
        "w_v": layer.scale_weight,
        "w_b": layer.scale_bias,
        "gamma": layer.weight,
        "beta": layer.bias,
    }


def _images(dataset: Any) -> Tensor:
    images: Tensor = dataset.tensors[0]
    return images


def _various(offset: Tensor, spread: Tensor) -> list[int]:
    """Eight instances: a typical one, then from low to high mean and from low to high variance.

    Args:
        offset: Mean of each instance, in standard deviations from the running mean.
        spread: Variance of each instance, in running variances.
    """
    chosen = [int((offset.abs() + spread.log().abs()).argmin())]
    for values, count in ((offset, IMAGES // 2), (spread, IMAGES - IMAGES // 2 - 1)):
        order = [i for i in values.argsort().tolist() if i not in chosen]
        places = torch.linspace(0.02, 0.98, count) * (len(order) - 1)
        chosen += [order[place] for place in places.round().int().tolist()]
    return chosen


def _packed(values: Tensor) -> str:
    """Numbers as base64 of float32, row by row."""
    return base64.b64encode(values.float().contiguous().numpy().astype("<f4").tobytes()).decode()


def _strip(images: Tensor) -> str:
    """Images side by side as a data URI."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(2, 0, 3, 1).flatten(1, 2)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
