"""Two processes equal one with the joined batch, in everything."""

from typing import Any

import pytest
import ranks
import torch
from tolerances import assert_close
from torch import Tensor

import rbnorm
from rbnorm.elementwise import ACTIVATIONS

# Options, instances of each process, compiled or not.
CASES: list[tuple[dict[str, Any], tuple[int, ...], bool]] = [
    ({}, (3, 2), False),
    ({}, (4, 0), False),
    ({}, (0, 3), False),
    ({}, (1, 1), False),
    ({"momentum": None}, (3, 2), False),
    ({"track_running_stats": False}, (3, 2), False),
    ({"affine": False, "scale": False}, (2, 3), False),
    ({"center": False, "restrict": "tanh"}, (2, 3), False),
    ({"statistic": "max"}, (3, 2), False),
    ({"restrict": torch.sigmoid}, (3, 2), False),
    ({}, (3, 2), True),
    ({"affine": False, "scale": False}, (2, 3), True),
]


@pytest.fixture(scope="module")
def found() -> list[list[dict[str, Tensor]]]:
    return ranks.on_ranks(ranks.one_step, CASES)


def joined(parts: list[dict[str, Tensor]], name: str) -> Tensor:
    """What one process would have: instances side by side, gradients summed, buffers alike."""
    own = [part[name] for part in parts]
    if name in {"x", "y", "residual"}:
        return torch.cat(own)
    if name.startswith("d "):
        return sum(own[1:], own[0])
    assert all(torch.equal(own[0], other) for other in own[1:])
    return own[0]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_processes_equal_one(found: Any, case: int) -> None:
    options, sizes, _ = CASES[case]
    layer = ranks.make(rbnorm.RepresentativeBatchNorm2d, **options)
    expected = ranks.results(layer, layer, *ranks.data((sum(sizes), 4, 5, 3)))
    for name, value in expected.items():
        actual = joined([part[case] for part in found], name)
        torch.testing.assert_close(actual, value, rtol=1e-12, atol=1e-12, msg=f"{name} differs")


# Backend, activation, instances of each process, options.
BACKENDS = tuple(dict.fromkeys((rbnorm.backends()["cpu"].name, "portable")))
FUSED: list[tuple[str, str, tuple[int, ...], dict[str, Any]]] = [
    *(
        (backend, activation, sizes, {})
        for backend in BACKENDS
        for activation in ACTIVATIONS
        for sizes in ((3, 2), (0, 3))
    ),
    *((backend, "relu", (3, 2), {"scale": False}) for backend in BACKENDS),
    *((backend, "none", (3, 2), {"affine": False, "scale": False}) for backend in BACKENDS),
]


@pytest.fixture(scope="module")
def fused() -> list[list[tuple[dict[str, Tensor], set[str]]]]:
    return ranks.on_ranks(ranks.fused_step, FUSED)


@pytest.mark.parametrize("case", range(len(FUSED)))
def test_residual_and_activation_equal_one_process(fused: Any, case: int) -> None:
    """By the phases of the backend that was chosen, in forward and backward."""
    backend, activation, sizes, options = FUSED[case]
    layer = ranks.make_fused(rbnorm.RepresentativeBatchNormAct2d, activation, **options)
    expected = ranks.results(layer, layer, *ranks.data((sum(sizes), 4, 5, 3), count=3))
    phases = {"moments", "affine", "grad_moments", "grad_affine"}
    for part in fused:
        assert part[case][1] - {"Refused"} == (set() if backend == "portable" else phases)
    for name, value in expected.items():
        actual = joined([part[case][0] for part in fused], name)
        assert_close(actual, value, torch.float32, scale=8.0)


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (1, 1)])
def test_a_batch_without_a_variance_leaves_the_running_statistics_alone(sizes) -> None:
    """One of two values has one."""
    layer = ranks.make(rbnorm.RepresentativeBatchNorm2d)
    for count in (sum(sizes), 4):
        if count > 1:
            layer(torch.ones(count, 4, 1, 1, dtype=torch.float64))
    for part in ranks.on_ranks(ranks.too_small, sizes):
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(part[name], layer.state_dict()[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("sizes", [(3, 2), (4, 0)])
def test_double_backward_equals_one_process(sizes: tuple[int, ...]) -> None:
    parts = ranks.on_ranks(ranks.twice, sizes)
    layer = ranks.make(rbnorm.RepresentativeBatchNorm2d)
    expected = ranks.gradient_penalty(layer, *ranks.data((sum(sizes), 4, 5, 3)))
    for name, value in expected.items():
        torch.testing.assert_close(joined(parts, name), value, rtol=1e-11, atol=1e-11)
