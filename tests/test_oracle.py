"""The layer against the literal definition in float64: outputs, gradients, running statistics."""

import pytest
import torch
from cases import LAYOUTS, Case, Oracle, cases
from hypothesis import given, settings
from tolerances import assert_close

from rbnorm import definition


def compare(case: Case, steps: int) -> None:
    """Run layer and oracle over several steps and compare everything they produce."""
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    layer = case.layer(wide)
    oracle = Oracle(case.layer(torch.float64))
    for step in range(steps):
        x, dy = case.tensors(step)
        before = x.clone()
        x_ours, x_oracle = x.detach().requires_grad_(), x.detach().double().requires_grad_()
        y, expected = layer(x_ours), oracle(x_oracle)
        assert torch.equal(x, before)
        assert y.dtype == case.dtype
        assert_close(y, expected, case.dtype)
        y.backward(dy)
        expected.backward(dy.double())
        # Cancelling terms of the gradient are as large as gamma r dy, whatever their sum.
        r = expected.detach().new_tensor(case.options["eps"]).rsqrt().item()
        assert x_ours.grad is not None
        assert_close(x_ours.grad, x_oracle.grad, case.dtype, scale=min(r, 30.0))
        for name, vector in oracle.vectors.items():
            assert_close(getattr(layer, name).grad, vector.grad, wide, scale=30.0)
        if oracle.mean is not None:
            assert_close(layer.running_mean, oracle.mean, wide)
            assert_close(layer.running_var, oracle.var, wide)


@given(cases())
@settings(max_examples=250, deadline=None)
def test_layer_equals_definition(case: Case) -> None:
    compare(case, steps=3)


@pytest.mark.parametrize("statistic", ["max", "min", "std"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_other_statistics_equal_definition(statistic: str, layout: str, training: bool) -> None:
    case = Case(
        (4, 3, 5, 3), torch.float32, layout, training, {"statistic": statistic, "eps": 0.1}, 0
    )
    compare(case, steps=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_callables_equal_definition(dtype: torch.dtype) -> None:
    options = {"statistic": lambda x: x.median(-1, keepdim=True)[0], "restrict": torch.cos}
    compare(Case((4, 3, 5, 3), dtype, "contiguous", True, {**options, "eps": 0.1}, 0), steps=2)


def test_reference_equals_loops_over_plain_numbers() -> None:
    """The oracle itself, against the paper's formulas on Python floats."""
    x = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gamma, beta, w_m, w_v, w_b = torch.randn(5, 2, dtype=torch.float64).unbind()
    y, mean, var = definition.literal_rbn(x, gamma, beta, w_m, w_v, w_b, eps=1e-5)
    for c in range(2):
        z = [[v + w_m[c].item() * sum(row) / 4 for v in row] for row in x[:, c].tolist()]
        E = sum(map(sum, z)) / 12
        V = sum((v - E) ** 2 for row in z for v in row) / 12
        assert mean[c].item() == pytest.approx(E, abs=1e-14)
        assert var[c].item() == pytest.approx(V, abs=1e-14)
        for n, row in enumerate(z):
            o = [(v - E) / (V + 1e-5) ** 0.5 for v in row]
            s = torch.tensor(w_v[c].item() * sum(o) / 4 + w_b[c].item(), dtype=torch.float64)
            gate = 1 / (1 + torch.exp(-s).item())
            expected = [gamma[c].item() * gate * v + beta[c].item() for v in o]
            assert y[n, c].tolist() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mean", [2.5, 1.0]), ("max", [4.0, 1.0]), ("min", [1.0, 1.0]), ("std", [1.25**0.5, 0.0])],
)
def test_named_statistics(name: str, expected: list[float]) -> None:
    x = torch.tensor([[[1.0, 2, 3, 4], [1, 1, 1, 1]]], dtype=torch.float64)
    assert definition.STATISTICS[name](x).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["mean", "max", "min"])
def test_statistic_of_a_single_position_is_the_value(name: str) -> None:
    x = torch.randn(3, 2)
    assert torch.equal(definition.STATISTICS[name](x), x)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", [0.11920292202211755, 0.5, 0.9820137900379085]),
        ("tanh", [-0.9640275800758169, 0.0, 0.999329299739067]),
        ("hardsigmoid", [1 / 6, 0.5, 1.0]),
        ("softsign", [-2 / 3, 0.0, 0.8]),
        ("clip01", [0.0, 0.0, 1.0]),
        ("identity", [-2.0, 0.0, 4.0]),
    ],
)
def test_named_restrictions(name: str, expected: list[float]) -> None:
    s = torch.tensor([-2.0, 0.0, 4.0], dtype=torch.float64)
    assert definition.RESTRICTIONS[name](s).tolist() == pytest.approx(expected)
