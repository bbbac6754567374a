"""The table of elementwise functions, and the tables of the compiled languages."""

import importlib
import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rbnorm import elementwise
from rbnorm.elementwise import ACTIVATIONS, RESTRICTIONS, activation_of, codes, mismatch
from tools import functions_table
from tools.marks import marked

TABLES = {"restrict": RESTRICTIONS, "activation": ACTIVATIONS}
FUNCTIONS = [(kind, name) for kind, table in TABLES.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), FUNCTIONS)
def test_derivative_is_that_of_autograd(kind: str, name: str) -> None:
    function = TABLES[kind][name]
    kinks = torch.tensor([-3.0, 0, 1, 3], dtype=torch.float64)
    x = torch.cat([torch.linspace(-8, 8, 1000, dtype=torch.float64), kinks]).requires_grad_()
    expected = torch.autograd.grad(function(x, 0.3).sum(), x)[0]
    assert torch.allclose(function.grad(x.detach(), 0.3), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("kind", "name"), FUNCTIONS)
def test_values_fill_the_range(kind: str, name: str) -> None:
    function = TABLES[kind][name]
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([-1e30, -1e4, 0.0, 1e4, 1e30])])
    y = function(x, 0.1)
    low, high = function.range
    assert y.isfinite().all()
    assert low <= y.min() <= max(low, -1e29) + 1e-3
    assert min(high, 1e29) - 1e-3 <= y.max() <= high


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_codes_are_different(table: dict[str, elementwise.Elementwise]) -> None:
    assert len(set(codes(table).values())) == len(table)
    assert elementwise.by_code(table).keys() == set(codes(table).values())


def test_triton_has_the_same_codes() -> None:
    kernels = pytest.importorskip("rbnorm.kernels.triton.elementwise")
    assert codes(RESTRICTIONS) == kernels.RESTRICTIONS
    assert codes(ACTIVATIONS) == kernels.ACTIVATIONS


def test_another_table_is_not_taken_for_this_one() -> None:
    own = codes(RESTRICTIONS), codes(ACTIVATIONS)
    assert mismatch("it", *own) == ""
    swapped = {**own[0], "tanh": own[0]["sigmoid"], "sigmoid": own[0]["tanh"]}
    assert "it knows 'sigmoid' by the code 1, rbnorm.elementwise by 0" in mismatch(
        "it", swapped, own[1]
    )
    assert "'mish' by the code 77, rbnorm.elementwise by None" in mismatch(
        "it", own[0], {**own[1], "mish": 77}
    )
    fewer = {name: code for name, code in own[1].items() if name != "silu"}
    assert "'silu' by the code None" in mismatch("it", own[0], fewer)


def test_triton_with_another_table_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("rbnorm.kernels.triton.elementwise")
    monkeypatch.setitem(kernels.RESTRICTIONS, "tanh", 77)
    spec = importlib.util.find_spec("rbnorm.kernels.triton.calls")
    with pytest.raises(ImportError, match="Triton's file knows 'tanh' by the code 77"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_library_with_another_table_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = SimpleNamespace(
        RESTRICTIONS=codes(RESTRICTIONS), ACTIVATIONS={**codes(ACTIVATIONS), "silu": 77}
    )
    monkeypatch.setitem(sys.modules, "rbnorm.kernels.cpu.calls", planted)
    found = importlib.import_module("rbnorm.kernels.backends")._cpu()
    assert found.name == "portable"
    assert "the C++ library knows 'silu' by the code 77, rbnorm.elementwise by 3" in found.why


@pytest.mark.parametrize("page", functions_table.PAGES, ids=str)
def test_the_docs_have_the_table(page: Path) -> None:
    """After a change of the table: PYTHONPATH=src python -m tools.functions_table."""
    drawn = functions_table.table(functions_table.PAGES[page])
    assert marked(page, "functions").strip() == drawn


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_layers_of_torch_are_known(name: str) -> None:
    function = ACTIVATIONS[name]
    module = function.module(**function.options)
    assert activation_of(module) == name
    x = torch.randn(100)
    slope = getattr(module, "negative_slope", math.nan)
    assert torch.allclose(module(x), function(x, slope), rtol=0, atol=1e-7)
    module.forward = lambda x: 2 * x
    assert activation_of(module) is None


def test_other_layers_are_not() -> None:
    class Mine(nn.ReLU):
        pass

    assert activation_of(Mine()) is None
    assert activation_of(nn.ELU()) is None
    unknown = nn.GELU()
    unknown.approximate = "another"
    assert activation_of(unknown) is None
