"""Whose statistics: the batch is this process's instances, or those of several processes.

Over processes, forward gathers once, 2 C + 1 numbers of each: the mean of its instances' means, the
variance of z, and how many values they stand for. Backward sums 2 C numbers once. The parameters'
gradients are those of a process's own instances: data-parallel training reduces them anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist


class Group(NamedTuple):
    """The processes that share a batch, in terms that compilers take for constants."""

    name: str
    size: int
    rank: int

    @classmethod
    def of(cls, process_group: dist.ProcessGroup | None) -> Group | None:
        """The group of this process, or None where it has no other process.

        Args:
            process_group: None for all processes.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return None
        group = dist.group.WORLD if process_group is None else process_group
        if group is None or dist.get_world_size(group) == 1:
            return None
        return cls(group.group_name, dist.get_world_size(group), dist.get_rank(group))


class Batch(NamedTuple):
    """What the instances at hand need to know of their batch.

    The mean of m over the batch is ``first + offset``, two (C,) vectors, so that a large common
    mean cancels before the small deviations are rounded; M is the number of values per channel.
    """

    first: Tensor
    offset: Tensor
    M: int | Tensor

    def deviation(self, m: Tensor) -> Tensor:
        """``m`` less its mean over the batch."""
        return (m - self.first) - self.offset


def amplify(table: Tensor, center_weight: Tensor | None) -> Tensor:
    """``(1 + w_m) table``."""
    return table if center_weight is None else table + center_weight * table


def alone(m: Tensor, L: int) -> Batch:
    """The batch of the instances at hand, with L positions each."""
    return Batch(m[0], (m - m[0]).mean(0), m.shape[0] * L)


def statistics(
    m: Tensor, v: Tensor, center_weight: Tensor | None, L: int, group: Group | None = None
) -> tuple[Batch, Tensor, Tensor]:
    """The batch with its E and V, from the (N, C) means and variances of the instances at hand.

    All processes of a group make this call, those without an instance too.
    """
    if group is None:
        batch = alone(m, L)
        d = amplify(batch.deviation(m), center_weight)
        V = torch.addcmul(v, d, d).mean(0)
        return batch, amplify(batch.first + batch.offset, center_weight), V
    count = m.shape[0] * L
    if count:
        mean, variance = m.mean(0), statistics(m, v, center_weight, L)[2]
    else:  # zeros, that have a gradient wherever those of the others have one
        mean, d = m[:0].sum(0), amplify(m[:0], center_weight)
        variance = torch.addcmul(v[:0], d, d).sum(0)
    own = torch.cat([mean, variance, m.new_full((1,), count)])
    gather = _Gather.apply if torch.is_grad_enabled() else _gather
    C = m.shape[1]
    means, variances, counts = gather(own, group).split([C, C, 1], 1)
    M = counts.sum()
    share, first = counts / M.clamp(min=1), means[0]
    batch = Batch(first, (share * (means - first)).sum(0), M)
    d = amplify(batch.deviation(means), center_weight)
    V = (share * torch.addcmul(variances, d, d)).sum(0)
    return batch, amplify(first + batch.offset, center_weight), V


def means(
    a: Tensor, b: Tensor, batch: Batch, L: int, group: Group | None = None
) -> tuple[Tensor, Tensor]:
    """The means over the batch of two (N, C) tables, weighted by the instances' values."""
    if group is None:
        return a.mean(0), b.mean(0)
    own = torch.cat([a.sum(0), b.sum(0)])
    own = own * L if L else torch.zeros_like(own)
    add = _Sum.apply if torch.is_grad_enabled() else _sum
    first, second = (add(own, group) / batch.M).chunk(2)
    return first, second


def _gather(t: Tensor, group: Group) -> Tensor:
    """The tensors of all processes, one after the other along a new first axis."""
    functional = torch.ops._c10d_functional
    gathered = functional.all_gather_into_tensor(t.contiguous(), group.size, group.name)
    whole: Tensor = functional.wait_tensor(gathered)
    return whole.view(group.size, *t.shape)


def _sum(t: Tensor, group: Group) -> Tensor:
    functional = torch.ops._c10d_functional
    total: Tensor = functional.wait_tensor(functional.all_reduce(t.contiguous(), "sum", group.name))
    return total


class _Context(torch.autograd.function.FunctionCtx):
    """What forward leaves for backward."""

    group: Group


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, t: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gather(t, group)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grads[0], ctx.group)[ctx.group.rank], None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, t: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _sum(t, group)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grads[0], ctx.group), None
