"""The image and channel where each of the four cases is strongest, before and after."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import rbnorm
from rbnorm.diagnosis.meter import batch_or_running, gate, normalised, wide
from rbnorm.diagnosis.passes import call, run, unchanged
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm_lab.feature_maps import photographs, strip
from rbnorm_lab.text import Text

_LEAST: Final = 4  # positions a side: a smaller map is no picture


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
        pictures = {"before": strip(self.before[None]), "after": strip(self.after[None])}
        shown = {**vars(self), **pictures, "photograph": photographs(self.photograph)}
        return dict(shown)


class _Search:
    """The strongest pair of each case so far, and the batch that is under way."""

    def __init__(self) -> None:
        self.found: dict[str, Extreme] = {}
        self.most = dict.fromkeys(CASES, 0.0)
        self.images = torch.empty(0)
        self.seen = 0  # images of the batches before

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the model, remembering what on."""
        self.seen += len(self.images)
        self.images = batch[0] if isinstance(batch, (list, tuple)) else batch
        return call(model, batch)

    def listener(self, name: str) -> Callable[[_BatchNorm, Tensor, Tensor | None], None]:
        """What looks at one layer's input."""

        def look(layer: _BatchNorm, x: Tensor, _: Tensor | None) -> None:
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
                    *_pictures(layer, x[n : n + 1], c),
                )

        return look


def _pictures(layer: _BatchNorm, x: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """The channel ``c`` of one image in standard deviations, before and after."""
    seen = normalised(layer, x)
    E, V = batch_or_running(layer, seen.mean, seen.var)
    values = wide(x)
    std = (V + layer.eps).sqrt()
    before = (values[0, c] - E[c]) / std[c]
    if not isinstance(layer, _RepresentativeBatchNorm):
        own = (values[0, c] - seen.mean[0, c]) / (seen.var[0, c] + layer.eps).sqrt()
        return before.cpu(), own.cpu()
    moved = (seen.mean - seen.x_mean)[0, c]
    z = values[0, c] + moved if seen.z is None else wide(seen.z)[0, c]
    o = (z - E[c]) / std[c]
    t = (seen.mean - E) / std
    gates = gate(layer, seen, t).get("gate")
    return before.cpu(), (o if gates is None else o * gates[0, c]).cpu()


def extremes(model: nn.Module, result: rbnorm.Diagnosis, batches: Iterable[Any]) -> list[Extreme]:
    """The strongest pair of image and channel of each case, from one pass over the data."""
    search = _Search()
    reached = [layer.layer for layer in result.layers if layer.instances]
    with unchanged(model):
        model.eval()
        run(model, batches, search.forward, {name: search.listener(name) for name in reached})
    return [search.found[case] for case in CASES if case in search.found]
