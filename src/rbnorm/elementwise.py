"""The table of elementwise functions: restrictions R and activations act, each with its derivative.

Everything that knows a function by name or by code reads it here. A compiled language has a file of
the same name (``kernels/cpu/csrc/elementwise.h``, ``kernels/triton/elementwise.py``), whose names
and codes are compared with this table when it is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The names in the tables below, as types: a checker finds one that does not exist.
RestrictionName = Literal["sigmoid", "tanh", "hardsigmoid", "softsign", "clip01", "identity"]
ActivationName = Literal["none", "relu", "leaky_relu", "silu", "hardswish", "gelu", "gelu_tanh"]

_INFINITY: Final = math.inf


@dataclass(frozen=True)
class Elementwise:
    """One function of a number.

    Attributes:
        code: How ops and compiled languages know it; never another function's, nor used again.
        formula: It in the letter s, for a restriction, or z, as LaTeX, for the docs.
        f: The function of a tensor; it may take the negative slope as a second argument.
        derivative: Its derivative, with torch's choice at the kinks; likewise.
        range: Bounds of its values.
        module: The layer of torch that computes an activation.
        options: That layer's arguments, where the class has several functions.
        sloped: Whether there is a second argument, the negative slope.
    """

    code: int
    formula: str
    f: Callable[..., Tensor]
    derivative: Callable[..., Tensor]
    range: tuple[float, float]
    module: type[nn.Module] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    sloped: bool = False

    def __call__(self, x: Tensor, slope: float = 0.0) -> Tensor:
        """The function's values."""
        return self.f(x, slope) if self.sloped else self.f(x)

    def grad(self, x: Tensor, slope: float = 0.0) -> Tensor:
        """The derivative's values."""
        return self.derivative(x, slope) if self.sloped else self.derivative(x)


def _sigmoid_grad(s: Tensor) -> Tensor:
    g = s.sigmoid()
    return g * (1 - g)


def _tanh_grad(s: Tensor) -> Tensor:
    g = s.tanh()
    return 1 - g * g


def _silu_grad(z: Tensor) -> Tensor:
    gate = z.sigmoid()
    return gate * (1 + z * (1 - gate))


def _hardswish_grad(z: Tensor) -> Tensor:
    return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, z / 3 + 0.5))


def _gelu_grad(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + torch.erf(z * math.sqrt(0.5))) + z * density


def _gelu_tanh_grad(z: Tensor) -> Tensor:
    c, k = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(c * (z + k * z * z * z))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * c * (1 + 3 * k * z * z)


RESTRICTIONS: Final[dict[str, Elementwise]] = {
    "sigmoid": Elementwise(0, r"1 / (1 + e^{-s})", torch.sigmoid, _sigmoid_grad, (0, 1)),
    "tanh": Elementwise(1, r"\tanh s", torch.tanh, _tanh_grad, (-1, 1)),
    "hardsigmoid": Elementwise(
        2,
        r"\min(\max(s / 6 + 1 / 2, 0), 1)",
        # F.hardsigmoid has 1/6 in float32; the derivative of clamp at its ends varies with torch.
        lambda s: F.hardtanh(s / 6 + 0.5, 0.0, 1.0),
        lambda s: (s.abs() < 3).to(s.dtype) / 6,
        (0, 1),
    ),
    "softsign": Elementwise(
        3,
        r"s / (1 + \lvert s \rvert)",
        F.softsign,
        lambda s: (1 + s.abs()).square().reciprocal(),
        (-1, 1),
    ),
    "clip01": Elementwise(
        5,
        r"\min(\max(s, 0), 1)",
        lambda s: torch.where(s < 0, 0.0, torch.where(s > 1, 1.0, s)),
        # 1 at both ends too, so that a gate which begins at the usual w_b = 1 learns.
        lambda s: ((s >= 0) & (s <= 1)).to(s.dtype),
        (0, 1),
    ),
    "identity": Elementwise(4, "s", lambda s: s, torch.ones_like, (-_INFINITY, _INFINITY)),
}

ACTIVATIONS: Final[dict[str, Elementwise]] = {
    "none": Elementwise(0, "z", lambda z: z, torch.ones_like, (-_INFINITY, _INFINITY), nn.Identity),
    "relu": Elementwise(
        1, r"\max(z, 0)", F.relu, lambda z: (z > 0).to(z.dtype), (0, _INFINITY), nn.ReLU
    ),
    "leaky_relu": Elementwise(
        2,
        r"\max(z, 0) + \text{slope} \min(z, 0)",
        F.leaky_relu,
        lambda z, slope: torch.where(z > 0, torch.ones_like(z), slope),
        (-_INFINITY, _INFINITY),
        nn.LeakyReLU,
        sloped=True,
    ),
    "silu": Elementwise(3, r"z / (1 + e^{-z})", F.silu, _silu_grad, (-0.2785, _INFINITY), nn.SiLU),
    "hardswish": Elementwise(
        4,
        r"z \min(\max(z / 6 + 1 / 2, 0), 1)",
        F.hardswish,
        _hardswish_grad,
        (-0.375, _INFINITY),
        nn.Hardswish,
    ),
    "gelu": Elementwise(
        5,
        r"z (1 + \operatorname{erf}(z / \sqrt 2)) / 2",
        F.gelu,
        _gelu_grad,
        (-0.17, _INFINITY),
        nn.GELU,
        {"approximate": "none"},
    ),
    "gelu_tanh": Elementwise(
        6,
        r"z (1 + \tanh(\sqrt{2 / \pi} (z + 0.044715 z^3))) / 2",
        lambda z: F.gelu(z, approximate="tanh"),
        _gelu_tanh_grad,
        (-0.1701, _INFINITY),
        nn.GELU,
        {"approximate": "tanh"},
    ),
}


def codes(table: Mapping[str, Elementwise]) -> dict[str, int]:
    """The code of each name."""
    return {name: function.code for name, function in table.items()}


def by_code(table: Mapping[str, Elementwise]) -> dict[int, Elementwise]:
    """The functions by their codes."""
    return {function.code: function for function in table.values()}


RESTRICTION_OF: Final = by_code(RESTRICTIONS)
ACTIVATION_OF: Final = by_code(ACTIVATIONS)


# Torch's layers with their own forward, which somebody may replace later, and their names here.
_LAYERS = {f.module: f.module.forward for f in ACTIVATIONS.values() if f.module is not None}
_NAMES = {
    module: [name for name, f in ACTIVATIONS.items() if f.module is module] for module in _LAYERS
}


def activation_of(module: nn.Module) -> str | None:
    """The name of the activation that a layer of torch computes; None if it is none of these."""
    kind = type(module)
    if kind not in _LAYERS or kind.forward is not _LAYERS[kind] or "forward" in module.__dict__:
        return None
    for name in _NAMES[kind]:
        options = ACTIVATIONS[name].options
        if all(getattr(module, key) == value for key, value in options.items()):
            return name
    return None


def mismatch(language: str, restrictions: Mapping[str, int], activations: Mapping[str, int]) -> str:
    """Why a compiled language's functions cannot be used; empty if they are those of this table."""
    for ours, theirs in ((RESTRICTIONS, restrictions), (ACTIVATIONS, activations)):
        for name in {**ours, **theirs}:
            own = ours[name].code if name in ours else None
            if own != theirs.get(name):
                return (
                    f"{language} knows {name!r} by the code {theirs.get(name)}, "
                    f"rbnorm.elementwise by {own}: it was built from other sources; build it again"
                )
    return ""
