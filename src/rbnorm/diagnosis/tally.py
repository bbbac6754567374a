"""Streaming moments: what is kept of a pass does not grow with the number of its batches."""

from __future__ import annotations

import torch
from torch import Tensor


class Tally:
    """Count, mean and biased variance of (N, ...) tables over their first axis, entry by entry.

    Batches are merged by the parallel formula of Chan et al. (1979), so a mean that is large
    against the spread costs no accuracy. Values that are not finite are left out.
    """

    def __init__(self) -> None:
        self.count = self.mean = self._squares = torch.zeros(())

    def add(self, table: Tensor, weight: int = 1) -> None:
        """Take in a batch, whose rows count as often as ``weight`` says."""
        finite = table * 0 == 0  # isfinite() takes four ops
        count = finite.sum(0, dtype=table.dtype)
        mean = table.where(finite, 0).sum(0) / count.clamp_min(1)
        squares = (table - mean).square_().where(finite, 0).sum(0) * weight
        count = count * weight
        if not self.count.ndim:
            self.count, self.mean, self._squares = count, mean, squares
            return
        total = self.count + count
        share = count / total.clamp_min(1)
        step = mean - self.mean
        self._squares = self._squares + squares + step.square() * self.count * share
        self.mean = self.mean + step * share
        self.count = total

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and biased variance, on the CPU; NaN where nothing was finite."""
        count, mean, squares = (t.cpu() for t in (self.count, self.mean, self._squares))
        none = count == 0
        return (
            count,
            mean.masked_fill(none, torch.nan),
            (squares / count).masked_fill(none, torch.nan),
        )
