"""The batch of a layer whose instances are spread over processes.

Forward gathers once, 2 C + 1 numbers of each process: the mean of its instances' means, the
variance of z, and how many values they stand for. Backward sums 2 C numbers once. The parameters'
gradients are those of a process's own instances; who trains data-parallel reduces them anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from rbnorm.kernels import fused, phases


class Group(NamedTuple):
    """The processes that share a batch, in terms that compilers take for constants."""

    name: str
    size: int
    rank: int

    @classmethod
    def of(cls, process_group: dist.ProcessGroup | None) -> Group | None:
        """The group of this process, or None where there is nobody to talk to.

        Args:
            process_group: None for all processes.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return None
        group = dist.group.WORLD if process_group is None else process_group
        if group is None or dist.get_world_size(group) == 1:
            return None
        return cls(group.group_name, dist.get_world_size(group), dist.get_rank(group))


def _gather(t: Tensor, group: Group) -> Tensor:
    """The tensors of all processes, one after the other along a new first axis."""
    functional = torch.ops._c10d_functional
    gathered = functional.all_gather_into_tensor(t.contiguous(), group.size, group.name)
    return functional.wait_tensor(gathered).view(group.size, *t.shape)  # type: ignore[no-any-return]


def _sum(t: Tensor, group: Group) -> Tensor:
    functional = torch.ops._c10d_functional
    return functional.wait_tensor(functional.all_reduce(t.contiguous(), "sum", group.name))  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gather(t, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grads[0], ctx.group)[ctx.group.rank], None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _sum(t, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grads[0], ctx.group), None


class Shared(fused.Batch):
    """One call's batch over the processes of a group; knows its statistics once it was asked.

    Args:
        group: The processes. All of them take part in every call, also with an empty batch.
        positions: L, the number of values of an instance and channel here.
        sweeps: The passes over big tensors.
    """

    def __init__(self, group: Group, positions: int, sweeps: Any = phases) -> None:
        self.group, self.positions, self.sweeps = group, positions, sweeps

    def again(self) -> Shared:
        """The same batch for another, differentiable pass: it will gather once more."""
        return Shared(self.group, self.positions)

    def statistics(
        self, m: Tensor, v: Tensor, center_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``m - mean m`` of the instances here, E and V of all of them."""
        C, count = m.shape[1], m.shape[0] * self.positions
        if count:
            mean, variance = m.mean(0), fused.WHOLE.statistics(m, v, center_weight)[2]
        else:  # zeros, that have a gradient wherever those of the others have one
            mean, d = m[:0].sum(0), fused.amplify(m[:0], center_weight)
            variance = torch.addcmul(v[:0], d, d).sum(0)
        own = torch.cat([mean, variance, m.new_full((1,), count)])
        gather = _Gather.apply if torch.is_grad_enabled() else _gather
        means, variances, counts = gather(own, self.group).split([C, C, 1], 1)
        total = counts.sum()
        share = counts / total
        first = means[0]
        offset = (share * (means - first)).sum(0)
        self.known = first, offset, total
        d = fused.amplify((means - first) - offset, center_weight)
        V = (share * torch.addcmul(variances, d, d)).sum(0)
        return self.deviation(m), fused.amplify(first + offset, center_weight), V

    def deviation(self, m: Tensor) -> Tensor:
        """``m`` less the mean over all processes' instances."""
        first, offset, _ = self.known
        return (m - first) - offset

    def means(self, *tables: Tensor) -> Sequence[Tensor]:
        """The mean over all processes' instances, by their numbers of values."""
        own = torch.cat([table.sum(0) for table in tables]) * self.positions
        if not self.positions:
            own = torch.zeros_like(own)
        add = _Sum.apply if torch.is_grad_enabled() else _sum
        return (add(own, self.group) / self.known[2]).chunk(len(tables))

    def size(self, x: Tensor) -> Tensor:
        """The number of values per channel of all processes."""
        return self.known[2]

    # What makes it a backend: the closed form asks it for the whole layer.
    def forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        """As ``torch.ops.rbnorm.forward``, in training."""
        forward: Any = fused.forward
        return forward(*arguments, self)  # type: ignore[no-any-return]

    def backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        """As ``torch.ops.rbnorm.backward``."""
        backward: Any = fused.backward
        return backward(*arguments, self)  # type: ignore[no-any-return]
