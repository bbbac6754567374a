"""Streaming moments: what is kept of a pass does not grow with the number of its batches."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_GROUP = 1024


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


class GroupTally:
    """The spread of batch statistics, for batches of 1, 2, 4, ... consecutive instances.

    Two groups of one size make one of the next, as in a binary counter, so the result does not
    depend on how the instances came in batches. Every instance weighs the same.
    """

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.tallies: list[Tally] = []

    def add(self, mean: Tensor, var: Tensor) -> None:
        """Take in the (N, C) means and biased variances of a batch's instances."""
        level = 0
        while len(mean) and 2**level <= _LARGEST_GROUP:
            if level == len(self.tallies):
                self.tallies.append(Tally())
                self.pending.append((mean[:0], var[:0]))
            self.tallies[level].add(torch.stack([mean, var, (var + self.eps).log()], 1))
            mean = torch.cat([self.pending[level][0], mean])
            var = torch.cat([self.pending[level][1], var])
            even = len(mean) // 2 * 2
            self.pending[level] = (mean[even:].clone(), var[even:].clone())
            first, second = mean[0:even:2], mean[1:even:2]
            var = (var[0:even:2] + var[1:even:2]) / 2 + ((first - second) / 2).square()
            mean = (first + second) / 2
            level += 1

    def result(self) -> list[tuple[int, int, float, float]]:
        """For every size with two groups: size, groups, spread of the mean and of ln variance.

        Both spreads are root mean squares over channels of unbiased standard deviations; that of
        the mean is relative to the root of the groups' mean variance, plus eps.
        """
        rows = []
        for level, tally in enumerate(self.tallies):
            count, mean, var = tally.result()
            groups = int(count.max()) if count.numel() else 0
            if groups < 2:
                break
            var = var * count / (count - 1)  # NaN or infinite where a channel has no two groups
            spread = (var[0] / (mean[1] + self.eps), var[2])
            rms = [float(s[s.isfinite()].mean().sqrt()) for s in spread]
            rows.append((2**level, groups, rms[0], rms[1]))
        return rows
