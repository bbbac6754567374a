"""Under torch.compile: one graph, any batch size, and the numbers of eager mode."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import rbnorm


class Net(nn.Module):
    """Two layers, one of them with an activation and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = rbnorm.RepresentativeBatchNormAct2d(
            4, act_layer=nn.SiLU, scale_weight_init=0.3, center_weight_init=0.2
        )
        self.mix = nn.Conv2d(4, 4, 1)
        self.add = rbnorm.RepresentativeBatchNormAct2d(4, scale_weight_init=-0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.add(self.mix(x), x)


def twins(training: bool) -> tuple[Net, Net]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    first, second = Net().train(training), Net().train(training)
    second.load_state_dict(first.state_dict())
    return first, second


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, input gradient and parameter gradients."""
    x = x.clone().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y.square().mean(), [x, *model.parameters()])]


def assert_same(eager: Net, captured: Net, compiled: nn.Module, x: Tensor) -> None:
    for expected, actual in zip(step(eager, x), step(compiled, x), strict=True):
        assert torch.allclose(actual, expected, rtol=1e-4, atol=2e-6)
    for expected, actual in zip(eager.buffers(), captured.buffers(), strict=True):
        assert torch.allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_graph_capture_is_whole_and_exact(training: bool) -> None:
    """One graph for forward and backward, the running statistics included."""
    eager, captured = twins(training)
    compiled = torch.compile(captured, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert_same(eager, captured, compiled, torch.randn(4, 2, 6, 6))


@pytest.mark.parametrize("training", [True, False])
def test_one_graph_serves_every_batch_size(training: bool) -> None:
    eager, captured = twins(training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(captured, backend=counter, fullgraph=True, dynamic=True)
    assert_same(eager, captured, compiled, torch.randn(4, 2, 6, 6))
    compiled_once = counter.frame_count
    for size in (6, 3):
        assert_same(eager, captured, compiled, torch.randn(size, 2, 6, 6))
    assert counter.frame_count == compiled_once


def test_layers_of_a_kind_share_one_graph() -> None:
    """Compiled one by one, as regional compilation does, equal layers are compiled once."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(lambda layer, x: layer(x), backend=counter, fullgraph=True)
    x = torch.randn(4, 3, 5, 5)
    for _ in range(3):
        run(rbnorm.RepresentativeBatchNorm2d(3), x)
    assert counter.frame_count == 1


def test_compiled_code_agrees() -> None:
    """The default backend, whose code is what users run."""
    eager, captured = twins(True)
    compiled = torch.compile(captured, fullgraph=True)
    assert_same(eager, captured, compiled, torch.randn(4, 2, 6, 6))


def test_backward_graph_keeps_the_closed_form() -> None:
    """The graph for backward reads x in two sweeps: no reduction is left over from autograd."""
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    layer = rbnorm.RepresentativeBatchNorm2d(3)
    compiled = torch.compile(layer, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    compiled(x).sum().backward()
    full = torch.Size([4, 3, 5, 5])
    reductions = [
        node
        for node in graphs[1].graph.nodes
        if node.op == "call_function"
        and node.target in (torch.ops.aten.mean.dim, torch.ops.aten.sum.dim_IntList)
        and node.args[0].meta["val"].shape == full
    ]
    # of dy, and of dy (x - m); before torch 2.14 the compiler differentiates, and finds two more
    assert len(reductions) == (2 if torch.__version__ >= "2.14" else 4)
