"""Accuracy on a domain as trained, and with remedies at test time that need no labels."""

import copy
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, nn

from rbnorm.diagnosis import recalibrate
from rbnorm.remedy.statistics import mixed_statistics
from rbnorm.remedy.tent import Tent
from rbnorm_lab.domains.images import TEST_IMAGES, DomainImages, unchanged
from rbnorm_lab.shift import TRAINED, accuracy

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

    def tested(forward: Callable[[Tensor], Any], size: int = TEST_IMAGES) -> float:
        return accuracy(forward, unchanged(images, chosen), size, chosen.device)

    found = {TRAINED: tested(model.eval())}
    if not remedies:
        return found
    batches = (batch for batch, _ in unchanged(images, chosen))
    found[RE_ESTIMATED] = tested(recalibrate(copy.deepcopy(model), batches))
    for names, prior in ((TEST_BATCH, 0), (MIXED, PRIOR)):
        for size, name in names.items():
            with mixed_statistics(model, size / (prior + size)):
                found[name] = tested(model, size)
    tent = Tent(model, calibration=False)
    found[TENT] = tested(lambda batch: tent(tent.model, batch), SIZES[0])
    return found
