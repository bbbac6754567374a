"""Accuracy on a domain as trained, and with remedies at test time that need no labels."""

import copy
from typing import Any, Final

import torch
from torch import Tensor, nn

from rbnorm.diagnosis import recalibrate
from rbnorm.diagnosis.passes import call
from rbnorm.remedy.statistics import mixed_statistics
from rbnorm.remedy.tent import Tent
from rbnorm_lab.domains.images import DomainImages, unchanged
from rbnorm_lab.shift import TRAINED

RE_ESTIMATED: Final = "re-estimated on the target"
SIZES: Final = (64, 16, 4)
TEST_BATCH: Final = {size: f"test batch of {size}" for size in SIZES}
MIXED: Final = {size: f"mixed, test batch of {size}" for size in SIZES}
TENT: Final = f"tent, batches of {SIZES[0]}"
STATISTICS: Final = (TRAINED, RE_ESTIMATED, *TEST_BATCH.values(), *MIXED.values(), TENT)
"""As trained; with running statistics re-estimated on the target; with those of each test batch;
with a mixture of the running ones, which weigh as :data:`PRIOR` images, and those of each test
batch (Schneider et al., 2020); and with those of the batch while TENT (Wang et al., 2021) adapts
the affine parameters, RBN's calibration apart, so that BatchNorm and RBN adapt the same."""
PRIOR: Final = 16
_MOST: Final = 512


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
            with mixed_statistics(model, size / (prior + size)):
                found[name] = accuracy(model, images, chosen, size)
    tent = Tent(model, calibration=False)
    found[TENT] = accuracy(tent.model, images, chosen, SIZES[0], tent)
    return found


@torch.no_grad()
def accuracy(
    model: nn.Module, images: DomainImages, chosen: Tensor, size: int = _MOST, forward: Any = call
) -> float:
    """Share of images that are classified correctly.

    Args:
        model: The model, in evaluation mode.
        images: All images.
        chosen: Indices of the images to test on.
        size: Images of a batch.
        forward: Runs the model on a batch.
    """
    right = torch.zeros((), dtype=torch.int64, device=chosen.device)
    for part in chosen.split(size):
        ((batch, labels),) = unchanged(images, part)
        right += (forward(model, batch).argmax(1) == labels).sum()
    return int(right) / max(len(chosen), 1)
