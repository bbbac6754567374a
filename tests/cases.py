"""Random layers and inputs for the comparisons with the oracle."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import rbnorm
from rbnorm import definition

LAYERS = {
    2: rbnorm.RepresentativeBatchNorm1d,
    3: rbnorm.RepresentativeBatchNorm1d,
    4: rbnorm.RepresentativeBatchNorm2d,
    5: rbnorm.RepresentativeBatchNorm3d,
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last", "strided", "transposed", "expanded")
VECTORS = ("weight", "bias", "center_weight", "scale_weight", "scale_bias")


def arrange(x: Tensor, layout: str) -> Tensor:
    """The values of ``x``, or for "expanded" some of them, in another memory layout."""
    if layout == "channels_last" and x.ndim in {4, 5}:
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats[x.ndim])
    if layout == "strided":
        return torch.stack([x, x + 1], -1)[..., 0]
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded":
        return x[:, :, :1].expand_as(x) if x.ndim > 2 else x
    return x.contiguous()


@dataclass(frozen=True)
class Case:
    """A layer's options and an input's description."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    training: bool
    options: dict[str, Any]
    seed: int

    def layer(self, dtype: torch.dtype) -> torch.nn.Module:
        """The layer with random parameters and buffers, the same for every ``dtype``."""
        generator = torch.Generator().manual_seed(self.seed)
        layer = LAYERS[len(self.shape)](self.shape[1], **self.options, dtype=dtype)
        for name in VECTORS:
            value = torch.randn(self.shape[1], generator=generator)
            if getattr(layer, name) is not None:
                getattr(layer, name).data.copy_(value)
        if layer.running_mean is not None:
            layer.running_mean.copy_(torch.randn(self.shape[1], generator=generator))
            layer.running_var.copy_(torch.rand(self.shape[1], generator=generator) + 0.5)
        return layer.train(self.training)

    def tensors(self, step: int) -> tuple[Tensor, Tensor]:
        """Input and output gradient of one step."""
        generator = torch.Generator().manual_seed(self.seed + 1 + step)
        x = torch.randn(self.shape, generator=generator).to(self.dtype)
        dy = torch.randn(self.shape, generator=generator).to(self.dtype)
        return arrange(2 * x + 1, self.layout), dy


class Oracle:
    """The literal definition in float64 with BatchNorm's bookkeeping, around a layer's state."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer
        self.vectors = {
            name: getattr(layer, name).detach().double().requires_grad_()
            for name in VECTORS
            if getattr(layer, name) is not None
        }
        tracked = layer.running_mean is not None
        self.mean = layer.running_mean.double() if tracked else None
        self.var = layer.running_var.double() if tracked else None
        self.batches = 0

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        fixed = (self.mean, self.var) if not layer.training and self.mean is not None else None
        y, mean, var = definition.literal_rbn(
            x,
            **self.vectors,
            statistics=fixed,
            eps=layer.eps,
            statistic=layer.calibration.statistic,
            restrict=layer.calibration.restrict,
        )
        if layer.training and self.mean is not None:
            self.batches += 1
            f = 1 / self.batches if layer.momentum is None else layer.momentum
            M = x.numel() / x.shape[1]
            self.mean = (1 - f) * self.mean + f * mean.detach()
            self.var = (1 - f) * self.var + f * var.detach() * M / (M - 1)
        return y


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Shapes down to N = 1 and L = 1, every dtype, layout and option of the closed form."""
    rank = draw(st.integers(0, 3))
    shape = (
        draw(st.integers(1, 5)),
        draw(st.integers(1, 4)),
        *(draw(st.integers(1, 5)) for _ in range(rank)),
    )
    training = draw(st.booleans())
    track = draw(st.booleans())
    if (training or not track) and torch.Size(shape).numel() == shape[1]:
        shape = (shape[0] + 1, *shape[1:])
    options = {
        "eps": draw(st.sampled_from([1e-5, 1e-3, 0.1])),
        "momentum": draw(st.sampled_from([0.1, 1.0, 0.0, None])),
        "affine": draw(st.booleans()),
        "track_running_stats": track,
        "center": draw(st.booleans()),
        "scale": draw(st.booleans()),
        "restrict": draw(st.sampled_from(sorted(definition.RESTRICTIONS))),
    }
    return Case(
        shape,
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(LAYOUTS)),
        training,
        options,
        draw(st.integers(0, 2**16)),
    )
