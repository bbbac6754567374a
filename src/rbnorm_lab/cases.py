"""The image and channel where each of the four cases is strongest, before and after."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from matplotlib.image import imsave
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import rbnorm
from rbnorm.diagnosis.meter import LIMITS, batch_or_running, normalised, wide
from rbnorm.diagnosis.passes import Listener, call, run, unchanged
from rbnorm.functional import representative_batch_norm
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm_lab.text import Text

_LEAST: Final = 4  # positions a side: a smaller map is no picture
_LIMIT: Final = 3.0  # standard deviations at the ends of the colour scale


class Case(NamedTuple):
    """One of the four ways in which an image can leave the running statistics.

    Attributes:
        name: Its name.
        limit: Where it begins, by ``mean`` running standard deviations or the ``factor`` of the
            running variance.
        effect: What it does to the features, by the paper.
    """

    name: Text
    limit: Text
    effect: Text


CASES: Final = {
    "mean_below": Case(
        Text("below the running mean", "均值低于滑动均值"),
        Text(
            "a mean more than {mean:g} running standard deviations below the running mean",
            "均值比滑动均值低 {mean:g} 个滑动标准差以上",
        ),
        Text("representative features are removed", "有代表性的特征被去除"),
    ),
    "mean_above": Case(
        Text("above the running mean", "均值高于滑动均值"),
        Text(
            "a mean more than {mean:g} running standard deviations above the running mean",
            "均值比滑动均值高 {mean:g} 个滑动标准差以上",
        ),
        Text("noise is let through", "噪声被保留"),
    ),
    "var_below": Case(
        Text("below the running variance", "方差低于滑动方差"),
        Text(
            "a variance less than 1/{factor:.3g} of the running one",
            "方差不到滑动方差的 1/{factor:.3g}",
        ),
        Text("the intensity becomes too small", "特征强度变得过小"),
    ),
    "var_above": Case(
        Text("above the running variance", "方差高于滑动方差"),
        Text(
            "a variance more than {factor:.3g} times the running one",
            "方差超过滑动方差的 {factor:.3g} 倍",
        ),
        Text("the intensity becomes too large", "特征强度变得过大"),
    ),
}


@dataclass(frozen=True)
class Extreme:
    """One pair of image and channel.

    Attributes:
        case: One of :data:`CASES`.
        layer: Name of the layer.
        channel: Number of the channel.
        image: Number of the image, in the order of the data.
        offset: The image's mean in running standard deviations from the running mean.
        log_var: ln of the image's variance over the running variance.
        calibrated: Whether ``after`` is RBN's calibration.
        photograph: The image as it enters the model, (1, C, H, W).
        before: The channel by the running statistics, as BatchNorm makes it, (H, W).
        after: For RBN the channel after centring and scaling; for BatchNorm the channel by the
            image's own statistics, which is what the running ones should be for it.
    """

    case: str
    layer: str
    channel: int
    image: int
    offset: float
    log_var: float
    calibrated: bool
    photograph: Tensor
    before: Tensor
    after: Tensor

    def drawn(self) -> dict[str, Any]:
        """For the page: numbers, and pictures as data URIs."""
        image = self.photograph[0].float().nan_to_num()
        low, high = (edge((1, 2), keepdim=True) for edge in (image.amin, image.amax))
        image = (image - low) / (high - low).clamp_min(1e-6)
        pictures = {
            name: _uri(values, cmap="PuOr_r", vmin=-_LIMIT, vmax=_LIMIT)
            for name, values in (("before", self.before), ("after", self.after))
        }
        shown = image.movedim(0, -1) if len(image) == 3 else image[0]
        return {**vars(self), **pictures, "photograph": _uri(shown, cmap="gray", vmin=0, vmax=1)}


def _uri(values: Tensor, **colours: Any) -> str:
    file = io.BytesIO()
    imsave(file, values.numpy(), format="png", **colours)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class _Search:
    """The strongest pair of each case so far, and the batch that is under way."""

    def __init__(self) -> None:
        self.found: dict[str, Extreme] = {}
        self.most = dict(LIMITS)
        self.images = torch.empty(0)
        self.seen = 0  # images of the batches before

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the model, remembering what on."""
        self.seen += len(self.images)
        self.images = batch[0] if isinstance(batch, (list, tuple)) else batch
        return call(model, batch)

    def listener(self, name: str) -> Listener:
        """What looks at one layer's input."""

        def look(layer: _BatchNorm, x: Tensor) -> None:
            if x.ndim != 4 or min(x.shape[2:]) < _LEAST or layer.running_mean is None:
                return
            seen = normalised(layer, x)
            E, V = batch_or_running(layer, seen.mean, seen.var)
            offset = (seen.mean - E) * (V + layer.eps).rsqrt()
            log_var = ((seen.var + layer.eps) / (V + layer.eps)).log()
            signed = (-offset, offset, -log_var, log_var)
            for case, strength in zip(CASES, signed, strict=True):
                strongest, where = strength.nan_to_num(-torch.inf).flatten().max(0)
                if float(strongest) <= self.most[case]:
                    continue
                n, c = divmod(int(where), x.shape[1])
                self.most[case] = float(strongest)
                self.found[case] = Extreme(
                    case,
                    name,
                    c,
                    self.seen + n,
                    float(offset[n, c]),
                    float(log_var[n, c]),
                    isinstance(layer, _RepresentativeBatchNorm),
                    self.images[n : n + 1].cpu(),
                    *(of[0, c].cpu() for of in _pictures(layer, wide(x[n : n + 1]), E, V)),
                )

        return look


def _pictures(layer: _BatchNorm, x: Tensor, E: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """One image's channels in standard deviations, before and after."""
    before = F.batch_norm(x, E, V, eps=layer.eps)
    if not isinstance(layer, _RepresentativeBatchNorm):
        return before, F.instance_norm(x, eps=layer.eps)
    own: dict[str, Any] = {name: wide(getattr(layer, name)) for name in layer.calibration.initial()}
    how = {name: getattr(layer.calibration, name) for name in ("statistic", "restrict")}
    return before, representative_batch_norm(x, E, V, eps=layer.eps, **own, **how)


def extremes(model: nn.Module, result: rbnorm.Diagnosis, batches: Iterable[Any]) -> list[Extreme]:
    """The strongest pair of image and channel of each case that there is, from one pass."""
    search = _Search()
    reached = [layer.layer for layer in result.layers if layer.instances]
    with unchanged(model):
        model.eval()
        run(model, batches, search.forward, {name: search.listener(name) for name in reached})
    return [search.found[case] for case in CASES if case in search.found]
