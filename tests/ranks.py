"""Functions run by two processes that talk through gloo; imported by them as by the tests."""

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist

import rbnorm
from rbnorm.elementwise import ACTIVATIONS

WORLD = 2


def _enter(rank: int, world: int, work: Callable[..., Any], folder: str, arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(work(rank, *arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def on_ranks(work: Callable[..., Any], *arguments: Any, world: int = WORLD) -> list[Any]:
    """What ``work(rank, *arguments)`` returned in each of the processes."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_enter, (world, work, folder, arguments), nprocs=world)
        files = (Path(folder) / f"{rank}.pt" for rank in range(world))
        return [torch.load(file, weights_only=False) for file in files]


def share(rank: int, sizes: tuple[int, ...]) -> slice:
    """The instances of a process, where each has as many as ``sizes`` says."""
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def make(kind: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """A layer of 4 channels in float64 with parameters far from their initial values."""
    layer = kind(4, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(4, generator=generator, dtype=torch.float64))
    return layer


def make_fused(kind: Callable[..., nn.Module], activation: str, **options: Any) -> nn.Module:
    """A layer that applies an activation of the table."""
    function = ACTIVATIONS[activation]
    options |= {"act_kwargs": dict(function.options), "inplace": False}
    return make(kind, act_layer=function.module, **options)


def data(shape: tuple[int, ...], count: int = 2) -> list[Tensor]:
    """x, dy and, where three are wanted, a residual."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * 2 + 3
    return [x, *(torch.randn_like(x) for _ in range(count - 1))]


def results(layer: nn.Module, call: Any, x: Tensor, dy: Tensor, *residual: Tensor) -> Any:
    """Output, every gradient and the buffers after one step."""
    inputs = [t.clone().requires_grad_() for t in (x, *residual)]
    y = call(*inputs)
    y.backward(dy)
    grads = zip(("x", "residual"), (t.grad for t in inputs), strict=False)
    found = {"y": y.detach(), **dict(grads)}
    found |= {f"d {name}": p.grad for name, p in layer.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in layer.named_buffers()}


def gradient_penalty(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Gradients of the squared norm of the input's gradient."""
    x, dy = x.clone().requires_grad_(), dy.clone().requires_grad_()
    (dx,) = torch.autograd.grad(layer(x), x, dy, create_graph=True)
    dx.square().sum().backward()
    found = {"x": x.grad, "y": dy.grad}
    found |= {f"d {name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return found


def one_step(rank: int, cases: list[tuple[dict[str, Any], tuple[int, ...], bool]]) -> list[Any]:
    """Every case's results with the synchronised layer."""
    found = []
    for options, sizes, compiled in cases:
        layer = make(rbnorm.SyncRepresentativeBatchNorm, **options)
        torch._dynamo.reset()
        call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        x, dy = (t[share(rank, sizes)] for t in data((sum(sizes), 4, 5, 3)))
        found.append(results(layer, call, x, dy))
    return found


class Recorded:
    """A module, and which of its names were asked for."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self.module, name)


def fused_step(rank: int, cases: list[tuple[str, str, tuple[int, ...], Any]]) -> list[Any]:
    """Every case's results with the synchronised layer in float32, and the C++ kernels that ran."""
    found = []
    for backend, activation, sizes, options in cases:
        layer = make_fused(rbnorm.SyncRepresentativeBatchNormAct2d, activation, **options).float()
        parts = (t[share(rank, sizes)].float() for t in data((sum(sizes), 4, 5, 3), count=3))
        if backend == "portable":
            with rbnorm.use_backend(backend):
                found.append((results(layer, layer, *parts), set()))
            continue
        calls = importlib.import_module("rbnorm.kernels.cpu.calls")
        recorded = Recorded(calls._kernels)
        with rbnorm.use_backend(backend), patch.object(calls, "_kernels", recorded):
            found.append((results(layer, layer, *parts), recorded.names))
    return found


def twice(rank: int, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    x, dy = (t[share(rank, sizes)] for t in data((sum(sizes), 4, 5, 3)))
    return gradient_penalty(make(rbnorm.SyncRepresentativeBatchNorm), x, dy)


def too_small(rank: int, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """The state after a batch that has no variance and a usual one, one pixel an instance."""
    layer = make(rbnorm.SyncRepresentativeBatchNorm)
    for count in (sizes[rank], 2):
        x = torch.ones(count, 4, 1, 1, dtype=torch.float64, requires_grad=True)
        layer(x).sum().backward()
    return {name: value.clone() for name, value in layer.state_dict().items()}
