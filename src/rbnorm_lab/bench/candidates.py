"""What is compared: every way to normalise a tensor, and a copy of it as the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

import rbnorm
from rbnorm import RepresentativeBatchNorm1d, RepresentativeBatchNorm2d, definition
from rbnorm_lab.bench.rows import Case

BASELINE: Final = "batchnorm"
LAYOUTS: Final[dict[str, torch.memory_format]] = {
    "nchw": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


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
        backend: What runs it; see :class:`~rbnorm_lab.bench.rows.Row`.
        call: Does the work once: forward, and in training backward.
        model: Its module, or None for the copy.
        grad: Whether the call differentiates.
        counts: What was counted of it beforehand, by the field of the row it belongs to.
    """

    name: str
    backend: str
    call: Callable[[], object]
    model: nn.Module | None
    grad: bool
    counts: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Open around calls, not in them: entering it costs as much as a small layer."""
        portable = self.backend == "portable"
        chosen = rbnorm.use_backend("portable") if portable else nullcontext()
        with torch.set_grad_enabled(self.grad), chosen:
            yield


def inputs(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """The input and the gradient of the output, standard normal, in the case's dtype and layout."""
    torch.manual_seed(0)
    x, dy = (
        torch.randn(case.shape, device=device)
        .to(getattr(torch, case.dtype))
        .contiguous(memory_format=LAYOUTS[case.layout])
        for _ in range(2)
    )
    return x.requires_grad_(case.training), dy


def eager(case: Case, device: torch.device) -> list[Subject]:
    """BatchNorm, RBN by every backend of the device, the literal definition, and a copy.

    The copy is ``x.clone()``: like a layer it allocates what it returns.
    """
    x, dy = inputs(case, device)
    chosen = rbnorm.backends()[device.type].name
    make = partial(_subject, case=case, x=x, dy=dy)
    flat = len(case.shape) < 4
    ours = RepresentativeBatchNorm1d if flat else RepresentativeBatchNorm2d
    subjects = [
        make(BASELINE, nn.BatchNorm1d if flat else nn.BatchNorm2d, "torch"),
        make("rbnorm", ours, chosen),
        make("literal", Literal, "torch"),
        Subject("copy", "torch", x.detach().clone, None, grad=False),
    ]
    if chosen != "portable":
        subjects.append(make("rbnorm portable", ours, "portable"))
    return subjects


def compiled(case: Case, device: torch.device) -> list[Subject]:
    """BatchNorm, and what ``torch.compile`` makes of it, of RBN and of the literal definition."""
    x, dy = inputs(case, device)
    torch.compiler.reset()  # else the shapes so far count against the limit of recompilations
    make = partial(_subject, case=case, x=x, dy=dy)
    layers = {BASELINE: nn.BatchNorm2d, "rbnorm": RepresentativeBatchNorm2d, "literal": Literal}
    return [
        make(BASELINE, nn.BatchNorm2d, "torch"),
        *(make(f"compiled {name}", kind, "inductor") for name, kind in layers.items()),
    ]


def _subject(
    name: str,
    kind: Callable[[int], nn.Module],
    backend: str,
    *,
    case: Case,
    x: Tensor,
    dy: Tensor,
) -> Subject:
    layer = kind(case.shape[1]).to(x.device).train(case.training)
    function: Callable[[Tensor], Tensor] = layer
    if backend == "inductor":
        function = torch.compile(layer, fullgraph=True, dynamic=False)
    if not case.training:
        return Subject(name, backend, partial(function, x), layer, grad=False)
    wanted = [x, *layer.parameters()]

    def step() -> object:
        return torch.autograd.grad(function(x), wanted, dy)

    return Subject(name, backend, step, layer, grad=True)
