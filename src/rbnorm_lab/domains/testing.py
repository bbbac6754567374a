"""Accuracy on a domain as trained, and with remedies at test time that need no labels."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rbnorm.definition import RESTRICTIONS
from rbnorm.diagnosis import recalibrate
from rbnorm.remedy.tent import Tent
from rbnorm_lab.domains.config import TRAINED
from rbnorm_lab.domains.images import DomainImages, unchanged

RE_ESTIMATED: Final = "re-estimated"
SIZES: Final = (64, 16, 4)
TEST_BATCH: Final = {size: f"test batch of {size}" for size in SIZES}
MIXED: Final = {size: f"mixed, test batch of {size}" for size in SIZES}
TENT: Final = f"tent, batches of {SIZES[0]}"
STATISTICS: Final = (TRAINED, RE_ESTIMATED, *TEST_BATCH.values(), *MIXED.values(), TENT)
"""As trained; with running statistics re-estimated on the target; with those of each test batch;
with a mixture of the running ones, which weigh as :data:`PRIOR` images, and those of each test
batch (Schneider et al., 2020); and with those of the batch while TENT (Wang et al., 2021) adapts
the affine parameters."""
PRIOR: Final = 16
_RBN: Final = ("center_weight", "scale_weight", "scale_bias")


def accuracies(
    model: nn.Module, images: DomainImages, chosen: Tensor, *, remedies: bool
) -> dict[str, float]:
    """Accuracy on these images, which come in this order, by the statistics they are tested with.

    Args:
        model: A trained model on the device of the images; it is not changed.
        images: All images.
        chosen: Indices of the images to test on.
        remedies: Test with all of :data:`STATISTICS`, not only as trained.
    """
    model.eval()
    found = {TRAINED: accuracy(model, images, chosen)}
    if not remedies:
        return found
    batches = (batch for batch, _ in unchanged(images, chosen))
    re_estimated = recalibrate(copy.deepcopy(model), batches)
    found[RE_ESTIMATED] = accuracy(re_estimated, images, chosen)
    for names, prior in ((TEST_BATCH, 0), (MIXED, PRIOR)):
        for size, name in names.items():
            with batch_statistics(model, size, prior):
                found[name] = accuracy(model, images, chosen, size)
    found[TENT] = tent(model, images, chosen)
    return found


@torch.no_grad()
def accuracy(
    model: nn.Module, images: DomainImages, chosen: Tensor, group: int | None = None
) -> float:
    """Share of images that are classified correctly.

    Args:
        model: The model, in evaluation mode.
        images: All images.
        chosen: Indices of the images to test on.
        group: Images that are normalised together: what is left of the last group comes by itself.
    """
    right = torch.zeros((), dtype=torch.int64, device=chosen.device)
    for batch, labels in unchanged(images, chosen):
        whole = len(batch) - len(batch) % (group or 1)
        for part in (slice(0, whole), slice(whole, None)):
            if len(labels[part]):
                right += (model(batch[part]).argmax(1) == labels[part]).sum()
    return int(right) / max(len(chosen), 1)


@contextmanager
def batch_statistics(model: nn.Module, group: int, prior: int) -> Iterator[None]:
    r"""Normalise in evaluation by the statistics of each ``group`` neighbours in a batch.

    With a prior of n images the statistics are
    :math:`(n\,\text{running} + N\,\text{batch}) / (n + N)` for the N images of a group. For RBN
    they are those of :math:`z = x + w_m K(x)`. Several groups go through a network at once.

    Args:
        model: A model of BatchNorm or RBN layers; its own forward passes come back on leaving.
        group: Images that are normalised together; a smaller batch is one group.
        prior: How many images the running statistics weigh as.

    Raises:
        ValueError: A batch is larger than ``group`` and no multiple of it.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    for layer in layers:
        vars(layer)["forward"] = _grouped(layer, group, prior)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _grouped(layer: _BatchNorm, group: int, prior: int) -> Callable[[Tensor], Tensor]:
    own: Any = layer
    w_m, w_v, w_b = (getattr(own, name, None) for name in _RBN)

    def forward(x: Tensor) -> Tensor:
        instances, channels = x.shape[:2]
        size = min(group, instances)
        if instances % size:
            raise ValueError(f"a batch of {instances} images cannot be cut into groups of {size}")
        v, m = torch.var_mean(x.flatten(2), 2, correction=0)
        z = m if w_m is None else m + w_m * m
        of_group = z.view(-1, size, channels)
        mean = of_group.mean(1, keepdim=True)
        var = (v.view_as(of_group) + (of_group - mean).square()).mean(1, keepdim=True)
        if prior:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            share = size / (prior + size)
            mean = layer.running_mean.lerp(mean, share)
            var = layer.running_var.lerp(var, share)
        r = (var + layer.eps).rsqrt()
        t = ((of_group - mean) * r).view_as(m)
        scale = (layer.weight * r).expand_as(of_group).reshape_as(m)
        shift = layer.weight * t
        if w_v is not None and w_b is not None:
            gate = RESTRICTIONS[own.calibration.restrict](w_v * t + w_b)
            scale, shift = gate * scale, gate * shift
        shift = shift + layer.bias - scale * m
        return torch.addcmul(shift[..., None, None], scale[..., None, None], x)

    return forward


def tent(model: nn.Module, images: DomainImages, chosen: Tensor) -> float:
    """Accuracy while the affine parameters follow the entropy of the predictions, batch by batch.

    RBN's calibration stays as it is, so that BatchNorm and RBN adapt the same parameters.

    Args:
        model: A trained model; a copy is adapted.
        images: All images.
        chosen: Indices of the images to test on.
    """
    adapting = Tent(model, lambda twin, batch: twin(batch), calibration=False)
    right = torch.zeros((), dtype=torch.int64, device=chosen.device)
    for part in chosen.split(SIZES[0]):
        ((batch, labels),) = unchanged(images, part)
        right += (adapting(adapting.model, batch).argmax(1) == labels).sum()
    return int(right) / max(len(chosen), 1)
