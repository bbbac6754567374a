"""Random calls of the C++ kernels equal plain PyTorch."""

import os
from typing import Any

import pytest
import torch
from cases import DTYPES, LAYOUTS
from direct import LAYER, NAMES, ON, coherent, named
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

import rbnorm
from rbnorm.elementwise import ACTIVATION_OF, RESTRICTION_OF

FOUND = rbnorm.backends()["cpu"]
pytestmark = pytest.mark.skipif(FOUND.name != "c++", reason=FOUND.why)
EXAMPLES = int(os.environ.get("RBNORM_FUZZ_EXAMPLES", "100"))  # make sanitize asks for more
FREE = ("residual", "weight", "bias", "center_weight")


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """An op and arguments that it must take."""
    op = draw(st.sampled_from(sorted(NAMES)))
    spatial = draw(st.lists(st.integers(1, 12), max_size=3))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 70)), *spatial)
    if torch.Size(shape).numel() == shape[1]:
        shape = (shape[0] + 1, *shape[1:])
    dtype = draw(st.sampled_from(DTYPES))
    args = named(op, shape, dtype, draw(st.sampled_from(LAYOUTS)))
    free = {"grad_affine": ("x_scale", "residual")}
    for name in FREE if op in LAYER else free.get(op, ("residual",)):
        if name in args and draw(st.booleans()):
            args[name] = None
    pairs = [("scale_weight", "scale_bias")]
    training = draw(st.booleans())
    pairs += [("running_mean", "running_var")] if op == "forward" and training else []
    for pair in pairs:
        if pair[0] in args and draw(st.booleans()):
            args |= dict.fromkeys(pair)
    options = {
        "training": training,
        "restrict": draw(st.sampled_from(sorted(RESTRICTION_OF))),
        "activation": draw(st.sampled_from(sorted(ACTIVATION_OF))),
        "eps": draw(st.sampled_from([1e-5, 0.1])),
        "want_dx": draw(st.booleans()),
        "want_dresidual": draw(st.booleans()),
    }
    options["want_dresidual"] &= options["activation"] > 0
    args |= {k: v for k, v in options.items() if k in args}
    return op, args | coherent(args) if op == "backward" else args


def outputs(result: Any, args: dict[str, Any]) -> list[Tensor]:
    """What a call gave and what it may have changed."""
    found = list(result) if isinstance(result, tuple) else [result]
    return found + [args[k] for k in ("running_mean", "running_var") if args.get(k) is not None]


@given(calls())
@settings(max_examples=EXAMPLES, deadline=None)
def test_right_calls_equal_the_portable_op(call: tuple[str, dict[str, Any]]) -> None:
    op, args = call
    exact = {k: v.double() if isinstance(v, Tensor) else v for k, v in args.items()}
    exact = {k: v.clone() if isinstance(v, Tensor) else v for k, v in exact.items()}
    expected = getattr(ON["portable"], op)(*exact.values())
    found = getattr(ON["c++"], op)(*args.values())
    pairs = zip(outputs(found, args), outputs(expected, exact), strict=True)
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        if ours is None:
            continue
        assert ours.isfinite().all()
        assert_close(ours, theirs, ours.dtype, scale=100.0)
