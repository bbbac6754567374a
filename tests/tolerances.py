"""The one table of tolerances, relative to the natural scale of what is compared."""

import torch
from torch import Tensor

# The unit roundoff times a margin for the length of the sums involved.
TOLERANCE = {
    torch.float64: 1e-11,  # ~1e-16, over sums of thousands and r up to 300
    torch.float32: 2e-5,  # ~6e-8, likewise
    torch.bfloat16: 1e-2,  # output and input gradient are rounded once, to 2**-9
    torch.float16: 2e-3,  # likewise, to 2**-11, with some values below the normal range
}


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    """Compare in float64; ``scale`` is the size of the terms that were summed to ``expected``."""
    assert actual.shape == expected.shape
    assert torch.isfinite(expected).all()
    if expected.numel() == 0:
        return
    size = max(scale, expected.abs().max().item())
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= TOLERANCE[dtype] * size, f"error {error:.3g} at scale {size:.3g}, {dtype}"
