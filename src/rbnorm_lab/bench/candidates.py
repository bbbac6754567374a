"""What is compared: every way to normalise a tensor, and a copy of it as the floor.

This, the cases and the clock need torch alone: the report of a GPU runs them where nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rbnorm
from rbnorm import RepresentativeBatchNorm1d, RepresentativeBatchNorm2d, definition
from rbnorm_lab.bench.cases import BASELINE, LAYOUTS, Case

NATIVE: Final = "batchnorm native"
"""BatchNorm without cuDNN, where that would serve it."""
_ROTATED: Final = 2**28  # bytes of all inputs on a GPU: several times its second-level cache
Call = Callable[[], object]


class Literal(RepresentativeBatchNorm2d):
    """The literal definition with the parameters of the layer; running statistics left out."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise and calibrate, formula by formula."""
        running = (self.running_mean, self.running_var)
        return definition.literal_rbn(
            input,
            self.weight,
            self.bias,
            self.center_weight,
            self.scale_weight,
            self.scale_bias,
            statistics=None if self.training else running,  # type: ignore[arg-type]
            eps=self.eps,
        )[0].to(input.dtype)


@dataclass(frozen=True)
class Subject:
    """A candidate ready to be called in one case.

    Attributes:
        name: The candidate.
        backend: What runs it; see :class:`~rbnorm_lab.bench.cases.Row`.
        calls: Each does the work once, on an input of its own; they take turns.
        model: Its module, or None for the copy.
        grad: Whether the calls differentiate.
    """

    name: str
    backend: str
    calls: tuple[Call, ...]
    model: nn.Module | None = None
    grad: bool = False

    @contextmanager
    def ready(self) -> Iterator[Call]:
        """The first call, open around all: entering this costs as much as a small layer."""
        with torch.set_grad_enabled(self.grad), ExitStack() as stack:
            if self.backend == "portable":
                stack.enter_context(rbnorm.use_backend("portable"))
            if self.name == NATIVE:
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield self.calls[0]


class Part(NamedTuple):
    """Cases, and what makes the candidates of one of them, BatchNorm among them."""

    cases: tuple[Case, ...]
    subjects: Callable[[Case, torch.device], list[Subject]]


def inputs(case: Case, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Inputs and gradients of the output, standard normal, in the case's dtype and layout.

    On a GPU there are as many as it takes that none is found in a cache, elsewhere one.
    """
    torch.manual_seed(0)
    count = max(2, min(16, _ROTATED // (3 * case.nbytes or 1))) if device.type == "cuda" else 1

    def draw() -> Tensor:
        x = torch.randn(case.shape, device=device).to(getattr(torch, case.dtype))
        return x.contiguous(memory_format=LAYOUTS[case.layout])

    return [(draw().requires_grad_(case.training), draw()) for _ in range(count)]


def eager(case: Case, device: torch.device) -> list[Subject]:
    """BatchNorm, RBN by every backend of the device, the literal definition, and a copy.

    The copy is ``x.clone()``: like a layer it allocates what it returns. On a GPU BatchNorm is
    there without cuDNN, too.
    """
    pairs = inputs(case, device)
    chosen = rbnorm.backends()[device.type].name
    make = partial(_layer, case=case, pairs=pairs)
    flat = len(case.shape) < 4
    theirs = nn.BatchNorm1d if flat else nn.BatchNorm2d
    ours = RepresentativeBatchNorm1d if flat else RepresentativeBatchNorm2d
    subjects = [
        make(BASELINE, theirs, "torch"),
        make("rbnorm", ours, chosen),
        make("literal", Literal, "torch"),
        Subject("copy", "torch", tuple(x.detach().clone for x, _ in pairs)),
    ]
    if device.type == "cuda":
        subjects.append(make(NATIVE, theirs, "torch"))
    elif chosen != "portable":
        subjects.append(make("rbnorm portable", ours, "portable"))
    return subjects


def compiled(case: Case, device: torch.device) -> list[Subject]:
    """BatchNorm, and what ``torch.compile`` makes of it, of RBN and of the literal definition."""
    torch.compiler.reset()  # else the shapes so far count against the limit of recompilations
    make = partial(_layer, case=case, pairs=inputs(case, device))
    layers = {BASELINE: nn.BatchNorm2d, "rbnorm": RepresentativeBatchNorm2d, "literal": Literal}
    return [
        make(BASELINE, nn.BatchNorm2d, "torch"),
        *(make(f"compiled {name}", kind, "inductor") for name, kind in layers.items()),
    ]


def _layer(
    name: str,
    kind: Callable[[int], nn.Module],
    backend: str,
    *,
    case: Case,
    pairs: list[tuple[Tensor, Tensor]],
) -> Subject:
    layer = kind(case.shape[1]).to(pairs[0][0].device).train(case.training)
    function: Callable[[Tensor], Tensor] = layer
    if backend == "inductor":
        function = torch.compile(layer, fullgraph=True, dynamic=False)

    def step(x: Tensor, dy: Tensor) -> object:
        return torch.autograd.grad(function(x), [x, *layer.parameters()], dy)

    calls = tuple(
        partial(step, x, dy) if case.mode == "training" else partial(function, x) for x, dy in pairs
    )
    return Subject(name, backend, calls, layer, case.training)


def network(
    name: str,
    model: nn.Module,
    backend: str,
    *,
    case: Case,
    device: torch.device,
    classes: int = 1000,
) -> Subject:
    """A whole network; training is a step of SGD with momentum on images of noise."""
    layout = LAYOUTS[case.layout]
    model = model.to(device).to(memory_format=layout).train(case.training)
    torch.manual_seed(0)
    images = torch.randn(case.shape, device=device).contiguous(memory_format=layout)
    labels = torch.randint(classes, case.shape[:1], device=device)
    function = torch.compile(model, dynamic=False) if backend == "inductor" else model
    if not case.training:
        return Subject(name, backend, (partial(function, images),), model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    narrow = case.dtype == "bfloat16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
            loss = F.cross_entropy(function(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(name, backend, (step,), model, grad=True)


def literally(model: nn.Module) -> nn.Module:
    """A model with RBN, computed formula by formula from now on."""
    for layer in model.modules():
        if isinstance(layer, RepresentativeBatchNorm2d):
            layer.__class__ = Literal
    return model
