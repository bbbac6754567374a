"""Training by several processes with the wrappers of torch; imported by them as by the tests."""

from collections.abc import Callable
from typing import Any

import torch
from models import shake
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import rbnorm
from rbnorm.engine.batch import Group

INSTANCES = 8
STEPS = 3

State = dict[str, Tensor]


def net(group: dist.ProcessGroup | None = None, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Two synchronised layers whose calibration is far from its initial values."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    convs = [nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False)]
    model = nn.Sequential(convs[0], norms[0], nn.ReLU(), convs[1], norms[1], *head)
    rbnorm.convert_batchnorm(shake(model), False, center_weight_init=0.4, scale_weight_init=0.7)
    return rbnorm.convert_sync(model, group).to(dtype)


def train(model: nn.Module, rank: int, world: int, dtype: torch.dtype = torch.float64) -> State:
    """Steps of two forward passes and one backward pass on this process's share; the end state."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    own = slice(rank * INSTANCES // world, (rank + 1) * INSTANCES // world)
    for _ in range(STEPS):
        x = torch.randn(2, INSTANCES, 2, 7, 7, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (2, INSTANCES), generator=generator)
        optimizer.zero_grad()
        outputs = [model(part[own].to(dtype)) for part in x]
        sum(F.cross_entropy(o, part[own]) for o, part in zip(outputs, y, strict=True)).backward()
        optimizer.step()
    return state(model)


def state(model: nn.Module) -> State:
    full = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in plain(model).items()}
    return {name: value.detach().clone() for name, value in full.items()}


def plain(model: nn.Module) -> State:
    return {k.removeprefix("module."): v for k, v in model.state_dict().items()}


def shard(model: nn.Module, mesh: DeviceMesh, **options: Any) -> nn.Module:
    for child in model:
        if list(child.parameters()):
            fully_shard(child, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def alone() -> DeviceMesh:
    """A mesh of this process."""
    groups = [dist.new_group([i]) for i in range(dist.get_world_size())]
    return DeviceMesh.from_group(groups[dist.get_rank()], "cpu")


def everything(rank: int) -> dict[str, Any]:
    """What two processes have after training in each way, and what one has with all the data."""
    world, single, half = dist.get_world_size(), torch.float32, torch.bfloat16
    whole, own = DeviceMesh("cpu", list(range(world))), alone()
    group = own.get_group()
    mixed = {"mp_policy": MixedPrecisionPolicy(param_dtype=half, reduce_dtype=single)}
    return {
        "one": train(net(group), 0, 1),
        "ddp": train(DistributedDataParallel(net()), rank, world),
        "fsdp": train(shard(net(), whole), rank, world),
        "one bfloat16": train(shard(net(group, single), own, **mixed), 0, 1, half),
        "fsdp bfloat16": train(shard(net(None, single), whole, **mixed), rank, world, half),
        "one frozen": train(rbnorm.freeze(net(group)), 0, 1),
        "ddp frozen": train(DistributedDataParallel(rbnorm.freeze(net())), rank, world),
        "collectives": collectives(),
        "group of one": Group.of(group),
        "distributed": {reduce: distributed(rank, reduce) for reduce in (True, False)},
    }


def distributed(rank: int, reduce: bool) -> State:
    """Statistics that differ from process to process, after timm has made them alike."""
    from timm.utils import distribute_bn  # noqa: PLC0415 - seconds, in every process

    model = DistributedDataParallel(nn.Sequential(rbnorm.RepresentativeBatchNorm2d(2)))
    model.module[0].running_mean.fill_(rank)
    model.module[0].running_var.fill_(3 + rank)
    distribute_bn(model, dist.get_world_size(), reduce=reduce)
    return state(model)


class Collectives(TorchDispatchMode):
    """Which collectives a process takes part in, and with how many numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in {"_c10d_functional", "c10d"} and "wait" not in str(func):
            self.seen.append((func.overloadpacket.__name__, args[0].numel()))
        return func(*args, **(kwargs or {}))


def collectives() -> list[tuple[str, int]]:
    """Those of a forward and a backward pass, the evaluation after it, and frozen statistics."""
    layer = rbnorm.SyncRepresentativeBatchNorm(5)
    x = torch.randn(3, 5, 4, requires_grad=True)
    seen = Collectives()
    with seen:
        layer(x).sum().backward()
        layer.eval()(x).sum().backward()
        rbnorm.freeze(layer).train()(x).sum().backward()
    return seen.seen


def in_groups(rank: int, members: tuple[tuple[int, ...], ...]) -> State:
    """One training step of a layer in the group that this process belongs to."""
    groups = [dist.new_group(list(ranks)) for ranks in members]
    mine = next(group for group, ranks in zip(groups, members, strict=True) if rank in ranks)
    layer = rbnorm.SyncRepresentativeBatchNorm(4, process_group=mine, dtype=torch.float64)
    x = batch(rank)
    y = layer(x)
    y.square().sum().backward()
    return {"y": y.detach(), "x": x.grad, "mean": layer.running_mean, "var": layer.running_var}


def batch(*ranks: int) -> Tensor:
    """The instances of some processes: each has other ones, and another number of them."""
    make: Callable[[int], Tensor] = lambda rank: torch.randn(  # noqa: E731
        rank + 1, 4, 3, generator=torch.Generator().manual_seed(rank), dtype=torch.float64
    )
    return torch.cat([make(rank) + rank for rank in ranks]).requires_grad_()
