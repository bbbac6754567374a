"""The launchers as the package has them."""

import importlib.util

import pytest
import torch

from rbnorm.kernels import active, phases, triton


def test_they_serve_cuda_and_rocm():
    assert active("cuda").whole.forward is triton.forward
    assert active("cuda").phases.mean is triton.mean


def test_phase_runs_the_kernel():
    x = torch.randn(3, 4, 5)
    assert torch.allclose(triton.mean(x), phases.mean(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_only_the_running_buffers_change(training):
    """And nothing that is returned lies in an argument's memory."""
    x, residual = torch.randn(2, 3, 4, 5).unbind()
    vectors, running = [torch.randn(4) for _ in range(5)], [torch.zeros(4), torch.ones(4)]
    tail = (1e-5, 0, 1, 0.0)
    given = [x, residual, *vectors, *running]
    before = [t.clone() for t in given]
    results = triton.forward(*given, training, 0.1, *tail)
    changed = [not torch.equal(a, b) for a, b in zip(given, before, strict=True)]
    assert changed == [False] * 7 + [training] * 2
    assert not {t.data_ptr() for t in results} & {t.data_ptr() for t in given}
    if not training:
        assert torch.equal(triton.inference(*given, *tail), results[0])


def test_reason_when_triton_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton.missing()
