"""What is timed: every way to run the layer, over inputs that take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rbnorm import RepresentativeBatchNorm2d
from rbnorm_lab.bench.candidates import Literal
from tools.gpu_report.options import DTYPES, LAYOUTS, Options

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One input, in training (forward and backward) or evaluation."""

    mode: str
    dtype: str
    layout: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Of the input."""
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize

    @property
    def passes(self) -> int:
        """How often data of the input's size is read or written, at least."""
        return 8 if self.mode == "training" else 2

    @property
    def fields(self) -> dict[str, Any]:
        """The columns of a row."""
        size = "x".join(map(str, self.shape))
        return {"mode": self.mode, "dtype": self.dtype, "layout": self.layout, "shape": size}


def random(case: Case, options: Options, seed: int) -> Tensor:
    """Normal values around 1, of the case's dtype and layout."""
    generator = torch.Generator(options.device).manual_seed(seed)
    x = torch.randn(case.shape, device=options.device, generator=generator) + 1
    return x.to(DTYPES[case.dtype]).contiguous(memory_format=LAYOUTS[case.layout])


@dataclass(frozen=True)
class Way:
    """A way to normalise: the layer, whether it is compiled, and whether cuDNN may serve it."""

    kind: Callable[[int], nn.Module]
    compiled: bool = False
    cudnn: bool = True

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Open around the calls."""
        with torch.backends.cudnn.flags(enabled=self.cudnn, benchmark=False):
            yield

    def calls(self, case: Case, options: Options, inputs: list[tuple[Tensor, Tensor]]) -> Any:
        """One call for every input: forward, and in training backward for all parameters."""
        torch.manual_seed(0)
        layer = self.kind(case.shape[1]).to(options.device).train(case.mode == "training")
        function: Any = layer
        if self.compiled:
            function = torch.compile(layer, fullgraph=True, dynamic=False)
        if case.mode != "training":
            return [partial(_evaluate, function, x) for x, _ in inputs]
        return [partial(_train, function, x, dy, list(layer.parameters())) for x, dy in inputs]


def _evaluate(function: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return function(x)  # type: ignore[no-any-return]


def _train(function: Any, x: Tensor, dy: Tensor, parameters: list[Tensor]) -> Any:
    y = function(x)
    return y, torch.autograd.grad(y, [x, *parameters], dy)


EAGER = {
    "batchnorm": Way(nn.BatchNorm2d),
    "batchnorm native": Way(nn.BatchNorm2d, cudnn=False),
    "rbn": Way(RepresentativeBatchNorm2d),
    "literal": Way(Literal),
}
COMPILED = {
    "compiled batchnorm": Way(nn.BatchNorm2d, compiled=True),
    "compiled rbn": Way(RepresentativeBatchNorm2d, compiled=True),
    "compiled literal": Way(Literal, compiled=True),
}
