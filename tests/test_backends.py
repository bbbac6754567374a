"""``use_backend`` in threads and generators, and the environment's limit."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import rbnorm
from rbnorm.kernels import active

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


def test_unknown_limit_in_the_environment_is_refused() -> None:
    environment = {**os.environ, "RBNORM_CPU": "avx", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", "import rbnorm"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "ValueError: RBNORM_CPU must be one of plain, avx2, avx512, got 'avx'" in run.stderr


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
