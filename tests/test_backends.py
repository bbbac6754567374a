"""``use_backend`` in threads and generators, and the environment's limit."""

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from processes import python
from torch import nn

import rbnorm
from rbnorm.elementwise import ACTIVATIONS
from rbnorm.kernels import Kernels, active, phases

backends = importlib.import_module("rbnorm.kernels.backends")

FOUND = rbnorm.backends()["cpu"].name


def test_contexts_that_overlap_leave_nothing_on() -> None:
    def portable() -> Iterator[None]:
        with rbnorm.use_backend("portable"):
            yield

    before = active("cpu")
    first, second = portable(), portable()
    next(first)
    next(second)
    assert next(first, None) is None  # the first one ends before the second
    assert rbnorm.backends()["cpu"].why == 'chosen by use_backend("portable")'
    assert next(second, None) is None
    assert active("cpu") is before
    assert rbnorm.backends()["cpu"].name == FOUND


def test_the_context_opened_last_is_in_force() -> None:
    with rbnorm.use_backend("portable"):
        with rbnorm.use_backend(FOUND):
            assert rbnorm.backends()["cpu"].name == FOUND
        assert rbnorm.backends()["cpu"].name == "portable"


class Counted:
    """Portable phases, whose calls are counted."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.calls[name] += 1
        return getattr(phases, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False])
def test_five_phases_are_a_backend(
    training: bool, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a word of the whole layer: residual, activation and gradients included."""
    function = ACTIVATIONS[activation]
    layer = rbnorm.RepresentativeBatchNormAct2d(
        3, act_layer=function.module, act_kwargs=dict(function.options), inplace=False
    )
    nn.init.normal_(layer.scale_weight)
    nn.init.normal_(layer.center_weight)
    layer.double().train(training)
    found = []
    mine = Counted()
    for kernels in ({}, {"cpu": Kernels(mine)}):
        monkeypatch.setattr(backends, "_active", kernels)
        torch.manual_seed(0)
        x, residual, dy = torch.randn(3, 4, 3, 5, 2, dtype=torch.float64).unbind()
        y = layer(x.requires_grad_(), residual.requires_grad_())
        y.backward(dy)
        found.append([y, x.grad, residual.grad, *(p.grad.clone() for p in layer.parameters())])
        layer.zero_grad()
    assert all(map(torch.equal, *found))
    first = "moments" if training else "mean"
    assert mine.calls.keys() == {first, "affine", "grad_moments", "grad_affine"}


def test_unknown_limit_in_the_environment_is_refused() -> None:
    found = python("-c", "import rbnorm", code=1, RBNORM_CPU="avx")
    assert "ValueError: RBNORM_CPU must be one of plain, avx2, avx512, got 'avx'" in found.stderr


@pytest.mark.parametrize("where", ["instance", "class", "global hook"])
@pytest.mark.parametrize("slot", ["act", "drop"])
def test_user_code_in_the_norm_act_layer_is_called(
    slot: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = rbnorm.RepresentativeBatchNormAct2d(2).eval()
    module, calls = getattr(layer, slot), []

    def spy(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(True)
        return arguments[-1]

    if where == "instance":
        monkeypatch.setattr(module, "forward", spy)
    elif where == "class":
        monkeypatch.setattr(type(module), "forward", spy)
    else:
        hook = lambda m, _: calls.append(True) if m is module else None  # noqa: E731
        handle = nn.modules.module.register_module_forward_pre_hook(hook)
    layer(torch.ones(1, 2, 3, 3))
    if where == "global hook":
        handle.remove()
    assert calls == [True]
