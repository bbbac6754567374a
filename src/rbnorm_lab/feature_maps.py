"""A few images next to what a layer's centring and scaling make of a channel of them."""

import base64
import io
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import rbnorm
from rbnorm.diagnosis.meter import gate, normalised, wide
from rbnorm.diagnosis.passes import call, normalisers, run, unchanged
from rbnorm.layers.base import _RepresentativeBatchNorm

_CHANNELS: Final = 3  # of each layer
_SIDE: Final = 32  # pixels of a map, at most
_LIMIT: Final = 3.0  # standard deviations at the ends of the colour scale
_MOST: Final = 60  # layers
_COLOURS: Final = "PuOr_r"  # diverging, and fit for colour-blind readers

Strip = str
"""A row of pictures as a data URI."""


@dataclass(frozen=True)
class ChannelMaps:
    """One channel of one layer on every image.

    Attributes:
        channel: Its number.
        stages: By heading, a strip of maps in standard deviations.
        offsets: Each image's mean before the calibration, in the same unit.
        gates: Each image's gate; empty without scaling.
    """

    channel: int
    stages: dict[str, Strip]
    offsets: list[float]
    gates: list[float]


@dataclass(frozen=True)
class FeatureMaps:
    """The images, and by layer the channels that are shown."""

    images: Strip
    layers: dict[str, list[ChannelMaps]]


def feature_maps(model: nn.Module, result: rbnorm.Diagnosis, images: Tensor) -> FeatureMaps:
    """Draw the channels in which the calibration does most, else those furthest off."""
    reached = [layer for layer in result.layers if layer.instances]
    step = -(-len(reached) // _MOST)
    found: dict[str, list[ChannelMaps]] = {}

    def listener(layer: rbnorm.LayerDiagnosis):  # type: ignore[no-untyped-def]
        def draw(module: _BatchNorm, x: Tensor, _: Tensor | None) -> None:
            if x.ndim == 4 and layer.layer not in found:
                found[layer.layer] = _layer_maps(module, layer, x)

        return draw

    listeners = {layer.layer: listener(layer) for layer in reached[::step]}
    with unchanged(model):
        model.eval()
        run(model, [images], call, listeners)
    order = [name for name in normalisers(model) if name in found]
    return FeatureMaps(photographs(images), {name: found[name] for name in order})


def _layer_maps(module: _BatchNorm, layer: rbnorm.LayerDiagnosis, x: Tensor) -> list[ChannelMaps]:
    channels = layer.per_channel
    seen = normalised(module, x)
    std = channels["var"].add(module.eps).sqrt()
    mean = channels.get("x_mean", channels["mean"])
    seen_offsets = ((seen.x_mean.cpu() - mean) / std).abs().mean(0)
    # centring moves an image by w_m times its offset: that is what can be seen
    visible = (
        seen_offsets * channels["center_weight"].abs()
        if "center_weight" in channels
        else seen_offsets
    )
    chosen = visible.nan_to_num(0).topk(min(_CHANNELS, len(visible))).indices
    # before: BatchNorm alone, with the mean of x over all images in the running mean's place
    stages = {"normalised, without calibration": _standardise(x, mean, std, chosen)}
    gates = torch.empty(0)
    if isinstance(module, _RepresentativeBatchNorm):
        moved = seen.mean - seen.x_mean
        z = wide(x) + moved[:, :, None, None] if seen.z is None else wide(seen.z)
        o = _standardise(z, channels["mean"], std, chosen)
        stages["after centring"] = o
        t = (seen.mean.cpu() - channels["mean"]) / std
        gates = gate(module, seen, t.to(seen.mean.device)).get("gate", gates).cpu()
        if gates.numel():
            stages["after scaling, times R"] = o * gates[:, chosen, None, None]
    offsets = ((seen.x_mean.cpu() - mean) / std)[:, chosen]
    return [
        ChannelMaps(
            int(channel),
            {heading: strip(maps[:, i]) for heading, maps in stages.items()},
            offsets[:, i].tolist(),
            gates[:, channel].tolist() if gates.numel() else [],
        )
        for i, channel in enumerate(chosen)
    ]


def _standardise(x: Tensor, mean: Tensor, std: Tensor, chosen: Tensor) -> Tensor:
    part = wide(x[:, chosen.to(x.device)]).cpu()
    return (part - mean[chosen, None, None]) / std[chosen, None, None]


def strip(maps: Tensor) -> Strip:
    """(N, H, W) maps in standard deviations, side by side."""
    indices = ((_tiles(maps, _SIDE) / _LIMIT).clamp(-1, 1) * 127.5 + 127.5).nan_to_num(0).round()
    picture = Image.fromarray(_row(indices.byte(), 128)).convert("P")
    picture.putpalette(mpl.colormaps[_COLOURS](np.arange(256), bytes=True)[:, :3].tobytes())
    return _uri(picture)


def _tiles(maps: Tensor, width: int) -> Tensor:
    """(..., H, W) maps with this width: averaged where they have more pixels, else repeated."""
    maps = maps if maps.ndim == 4 else maps.unsqueeze(1)
    rows, columns = maps.shape[-2:]
    height = max(1, round(width * rows / columns))
    maps = F.adaptive_avg_pool2d(maps, (min(rows, height), min(columns, width)))
    return F.interpolate(maps, (height, width), mode="nearest-exact").squeeze(1)


def _row(tiles: Tensor, blank: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(N, H, W, ...) tiles side by side, a sixteenth of their width apart."""
    gap = [0, 0] * (tiles.ndim - 3) + [0, tiles.shape[2] // 16]
    return np.concatenate(list(F.pad(tiles, gap, value=blank).numpy()), axis=1)


def photographs(images: Tensor) -> Strip:
    """Images as they enter the model, each stretched to the full range."""
    images = _tiles(images.float(), 3 * _SIDE)
    images = images.reshape(len(images), -1, *images.shape[-2:])
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    shown = ((images - low) / (high - low).clamp_min(1e-6) * 255).byte()
    shown = shown.expand(-1, 3, -1, -1) if shown.shape[1] == 1 else shown[:, :3]
    return _uri(Image.fromarray(_row(shown.permute(0, 2, 3, 1), 255)))


def _uri(picture: Image.Image) -> Strip:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
