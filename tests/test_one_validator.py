"""What eager refuses, compilers, tracers and transforms refuse too, by the same sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import rbnorm
from rbnorm.functional import representative_batch_norm

X = torch.zeros(2, 3, 4, 4)


class Call(nn.Module):
    """The function with some arguments fixed."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = {"running_mean": torch.zeros(3), "running_var": torch.ones(3), **arguments}

    def forward(self, x: Tensor) -> Tensor:
        return representative_batch_norm(x, **self.arguments)


BAD: dict[str, tuple[nn.Module, Tensor, str]] = {
    "channels": (rbnorm.RepresentativeBatchNorm2d(1).eval(), X, "weight must have shape (3,)"),
    "dtype": (rbnorm.RepresentativeBatchNorm2d(3).eval(), X.int(), "input must be float16"),
    "one value": (rbnorm.RepresentativeBatchNorm1d(3), X[:1, :, 0, 0], "more than 1 value"),
    "eps": (Call(eps=-1.0), X, "eps must be non-negative and finite, got -1.0"),
    "pair": (Call(scale_weight=torch.ones(3)), X, "scale_weight and scale_bias must be given toge"),
    "residual's shape": (Call(residual=X[:1]), X, "residual must have shape (2, 3, 4, 4)"),
    "residual's dtype": (Call(residual=X.double()), X, "residual must be float32, got float64"),
    "restriction": (Call(restrict="relu"), X, "restrict must be one of"),
    "activation": (Call(activation="mish"), X, "activation must be None or one of"),
}


def compiled(module: nn.Module, x: Tensor) -> Any:
    torch._dynamo.reset()
    return torch.compile(module, backend="eager", fullgraph=True)(x)


def forward_mode(module: nn.Module, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return module(forward_ad.make_dual(x, x))


MODES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "eager": lambda module, x: module(x),
    "compiled": compiled,
    "exported": lambda module, x: torch.export.export(module, (x,)),
    "traced": lambda module, x: torch.jit.trace(module, (x,)),
    "vmapped": lambda module, x: torch.func.vmap(module)(x[None]),
    "jvp": lambda module, x: torch.func.jvp(module, (x,), (x,)),
    "forward mode": forward_mode,
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("mode", MODES)
def test_refused_by_the_same_sentence(mode: str, bad: str) -> None:
    module, x, sentence = BAD[bad]
    if not x.is_floating_point() and mode in {"jvp", "forward mode"}:
        pytest.skip("torch has no such derivative")
    with pytest.raises(Exception) as raised:  # noqa: PT011 - a compiler wraps it in its own
        MODES[mode](module, x)
    assert sentence in str(raised.value)
