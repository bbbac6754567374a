"""The functions of one number: restrictions R and activations act, each with its derivative.

A new one is a code in a table and a branch in two functions. A code without a branch does not
compile.
"""

# No `from __future__ import annotations`: Triton reads the annotations.

import triton
import triton.language as tl

RESTRICTIONS = {
    "sigmoid": 0,
    "tanh": 1,
    "hardsigmoid": 2,
    "softsign": 3,
    "identity": 4,
    "clip01": 5,
}
ACTIVATIONS = {
    "none": 0,
    "relu": 1,
    "leaky_relu": 2,
    "silu": 3,
    "hardswish": 4,
    "gelu": 5,
    "gelu_tanh": 6,
}

SIGMOID: tl.constexpr = tl.constexpr(RESTRICTIONS["sigmoid"])
TANH: tl.constexpr = tl.constexpr(RESTRICTIONS["tanh"])
HARDSIGMOID: tl.constexpr = tl.constexpr(RESTRICTIONS["hardsigmoid"])
SOFTSIGN: tl.constexpr = tl.constexpr(RESTRICTIONS["softsign"])
IDENTITY: tl.constexpr = tl.constexpr(RESTRICTIONS["identity"])
CLIP01: tl.constexpr = tl.constexpr(RESTRICTIONS["clip01"])

NONE: tl.constexpr = tl.constexpr(ACTIVATIONS["none"])
RELU: tl.constexpr = tl.constexpr(ACTIVATIONS["relu"])
LEAKY_RELU: tl.constexpr = tl.constexpr(ACTIVATIONS["leaky_relu"])
SILU: tl.constexpr = tl.constexpr(ACTIVATIONS["silu"])
HARDSWISH: tl.constexpr = tl.constexpr(ACTIVATIONS["hardswish"])
GELU: tl.constexpr = tl.constexpr(ACTIVATIONS["gelu"])
GELU_TANH: tl.constexpr = tl.constexpr(ACTIVATIONS["gelu_tanh"])


@triton.jit
def normal(z):
    """The cumulative normal distribution."""
    return (1 + tl.erf(z * tl.full([1, 1], 0.7071067811865476, z.dtype))) / 2


@triton.jit
def gelu_exponent(z):
    """``2 sqrt(2 / pi) (z + 0.044715 z^3)``."""
    cube = tl.full([1, 1], 0.044715, z.dtype) * z * z * z
    return tl.full([1, 1], 1.5957691216057308, z.dtype) * (z + cube)


@triton.jit
def activate(z, slope, ACTIVATION: tl.constexpr):
    """act(z); NaN passes through every one."""
    if ACTIVATION == NONE:
        y = z
    elif ACTIVATION == RELU:
        y = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == LEAKY_RELU:
        y = tl.where(z < 0, z * tl.full([1, 1], slope, z.dtype), z)
    elif ACTIVATION == SILU:
        y = z * tl.sigmoid(z)
    elif ACTIVATION == HARDSWISH:
        y = z * restrict(z, HARDSIGMOID)
    elif ACTIVATION == GELU:
        y = z * normal(z)
    else:
        tl.static_assert(ACTIVATION == GELU_TANH, "no such activation")
        y = z * tl.sigmoid(gelu_exponent(z))
    return y


@triton.jit
def activation_grad(z, slope, ACTIVATION: tl.constexpr):
    """act'(z), with torch's choice at the kinks."""
    if ACTIVATION == RELU:
        d = tl.where(z <= 0, 0.0, 1.0).to(z.dtype)
    elif ACTIVATION == LEAKY_RELU:
        d = tl.where(z > 0, tl.full([1, 1], 1.0, z.dtype), tl.full([1, 1], slope, z.dtype))
    elif ACTIVATION == SILU:
        gate = tl.sigmoid(z)
        d = gate * (1 + z * (1 - gate))
    elif ACTIVATION == GELU:
        density = tl.exp(z * z / -2) * tl.full([1, 1], 0.3989422804014327, z.dtype)
        d = normal(z) + z * density
    elif ACTIVATION == GELU_TANH:
        gate = tl.sigmoid(gelu_exponent(z))
        inner = tl.full([1, 1], 1.5957691216057308, z.dtype)
        inner *= 1 + tl.full([1, 1], 3 * 0.044715, z.dtype) * z * z
        d = gate + z * gate * (1 - gate) * inner
    else:
        tl.static_assert(ACTIVATION == HARDSWISH, "no such activation")
        d = tl.where(z <= -3, 0.0, tl.where(z < 3, z / 3 + 0.5, 1.0))
    return d


@triton.jit
def restrict(s, RESTRICT: tl.constexpr):
    """R(s)."""
    if RESTRICT == SIGMOID:
        g = tl.sigmoid(s)
    elif RESTRICT == TANH:
        e = tl.exp(-2 * tl.abs(s))
        g = tl.where(s < 0, e - 1, 1 - e) / (1 + e)
    elif RESTRICT == HARDSIGMOID:
        g = s / 6 + 0.5
        g = tl.where(g < 0, 0.0, tl.where(g > 1, 1.0, g))
    elif RESTRICT == SOFTSIGN:
        g = s / (1 + tl.abs(s))
    elif RESTRICT == CLIP01:
        g = tl.where(s < 0, 0.0, tl.where(s > 1, 1.0, s))
    else:
        tl.static_assert(RESTRICT == IDENTITY, "no such restriction")
        g = s
    return g


@triton.jit
def restrict_grad(s, g, RESTRICT: tl.constexpr):
    """R'(s), given s and g = R(s)."""
    if RESTRICT == SIGMOID:
        d = g * (1 - g)
    elif RESTRICT == TANH:
        d = 1 - g * g
    elif RESTRICT == HARDSIGMOID:
        d = tl.where(tl.abs(s) < 3, 1.0, 0.0).to(s.dtype) / 6
    elif RESTRICT == SOFTSIGN:
        a = 1 + tl.abs(s)
        d = 1 / (a * a)
    elif RESTRICT == CLIP01:
        d = tl.where((s >= 0) & (s <= 1), 1.0, 0.0).to(s.dtype)
    else:
        tl.static_assert(RESTRICT == IDENTITY, "no such restriction")
        d = s * 0 + 1
    return d
