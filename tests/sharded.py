"""Models sharded by FSDP2, and their checkpoints; imported by processes as by the tests."""

import copy
from typing import Any

import torch
from models import shake
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import rbnorm

Norm = type[nn.Module]
RBN = rbnorm.RepresentativeBatchNorm2d
WHOLE = StateDictOptions(full_state_dict=True)


def built(kind: Norm, device: str = "cpu", affine: bool = True) -> nn.Module:
    """A model of five channels, so that no two processes have as many."""
    torch.manual_seed(0)
    with torch.device(device):
        return nn.Sequential(nn.Conv2d(2, 5, 3), kind(5, affine=affine))


def shard(model: nn.Module) -> nn.Module:
    return fully_shard(model, mesh=DeviceMesh("cpu", list(range(dist.get_world_size()))))


def full(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict().items()
    whole = {name: v.full_tensor() if isinstance(v, DTensor) else v for name, v in state}
    return {name: value.detach().clone() for name, value in whole.items()}


def pretrained(affine: bool = True) -> nn.Module:
    return shake(built(nn.BatchNorm2d, affine=affine))


def from_batchnorm() -> dict[str, dict[str, Tensor]]:
    """The whole state of an RBN model that got that of :func:`pretrained`, in every way."""
    found = {}
    for affine in (True, False):
        source, sharded = pretrained(affine).state_dict(), shard(pretrained(affine)).state_dict()
        for device in ("cpu", "meta"):
            model = shard(built(RBN, device, affine))
            model.load_state_dict(sharded, assign=True)
            found[f"assigned, {device}, {affine}"] = full(model)
            model = shard(built(RBN, device, affine)).to_empty(device="cpu")
            model.load_state_dict(sharded)
            found[f"copied, {device}, {affine}"] = full(model)
            model = shard(built(RBN, device, affine))
            set_model_state_dict(model, copy.copy(source), options=WHOLE)
            found[f"distributed, {device}, {affine}"] = full(model)
    return found


def without_memory() -> dict[str, Tensor]:
    """The calibration of a model that was sharded without memory, once it has some."""
    model = shard(built(RBN, "meta")).to_empty(device="cpu")
    return {name: value for name, value in full(model).items() if "scale" in name or "cent" in name}


def refused() -> list[str]:
    """What is said of a sharded model that cannot be converted or reverted, which then works."""
    messages = []
    for kind, change in (
        (nn.BatchNorm2d, rbnorm.convert_batchnorm),
        (RBN, rbnorm.revert_batchnorm),
    ):
        model = shard(built(kind))
        before = full(model)
        try:
            change(model)
        except ValueError as error:
            messages.append(str(error))
        assert all(torch.equal(value, before[name]) for name, value in full(model).items())
        model(torch.randn(3, 2, 5, 5)).sum().backward()
    return messages


def everything(rank: int, folder: str) -> dict[str, Any]:
    """All of the above, and a sharded model far from its initial values, which is written."""
    model = rbnorm.convert_batchnorm(pretrained())
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    shard(model)
    checkpoint.save(model.state_dict(), checkpoint_id=folder)
    return {
        "batchnorm": from_batchnorm(),
        "without memory": without_memory(),
        "refused": refused(),
        "saved": full(model),
    }


def resharded(rank: int, folder: str, again: str) -> dict[str, Tensor]:
    """Read that, into as many shards as there are processes here, and write it again."""
    model = shard(rbnorm.convert_batchnorm(built(nn.BatchNorm2d)))
    state: dict[str, Any] = model.state_dict()
    checkpoint.load(state, checkpoint_id=folder)
    model.load_state_dict(state)
    checkpoint.save(model.state_dict(), checkpoint_id=again)
    return full(model)
