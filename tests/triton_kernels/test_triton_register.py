"""The launchers as torch ops, under a dispatch key."""

import importlib.util

import pytest
import torch
from direct import inputs, of_sweeps

from rbnorm import kernels
from rbnorm.kernels import SCHEMAS, phases
from rbnorm.kernels.triton import OPS, register

VECTORS = (
    "Tensor? weight, Tensor? bias, Tensor? center_weight, Tensor? scale_weight, Tensor? scale_bias"
)
OPTIONS = "float eps, int restrict, int activation, float slope"
FUSED = {
    "inference": f"(Tensor x, Tensor? residual, {VECTORS}, Tensor running_mean, "
    f"Tensor running_var, {OPTIONS}) -> Tensor",
    "forward": f"(Tensor x, Tensor? residual, {VECTORS}, Tensor(a!)? running_mean, "
    f"Tensor(b!)? running_var, bool training, float momentum, {OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "backward": f"(Tensor dy, Tensor x, Tensor? residual, Tensor m, Tensor E, Tensor V, {VECTORS}, "
    f"bool training, {OPTIONS}, bool want_dx, bool want_dresidual) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
}


@pytest.fixture(scope="module")
def ops():
    """A library of its own, whose ops run the kernels on CPU tensors."""
    library = torch.library.Library("rbnorm_interpreted", "DEF")
    for name, schema in {**FUSED, **SCHEMAS}.items():
        library.define(name + schema)
    for name, fake in kernels.OPS.items():
        torch.library.register_fake(f"rbnorm_interpreted::{name}", fake, lib=library)
    assert register(library, "CPU") is None
    yield torch.ops.rbnorm_interpreted
    library._destroy()


def test_every_op_is_registered(ops):
    assert set(OPS) == {*SCHEMAS, *FUSED}
    for name in OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"rbnorm_interpreted::{name}", "CPU")


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(ops, channels_last):
    """Schema, aliasing and the fakes that every backend shares."""
    layout = "channels_last" if channels_last else "contiguous"
    for name, args in of_sweeps(*inputs((3, 4, 2, 5), torch.float32, layout)).items():
        torch.library.opcheck(getattr(ops, name).default, args)


@pytest.mark.parametrize("training", [True, False])
def test_fused_ops_keep_to_their_schema(ops, training):
    """Only the running buffers change, and nothing that is returned aliases an argument."""
    x = torch.randn(3, 4, 5)
    vectors, running = [torch.randn(4) for _ in range(5)], [torch.zeros(4), torch.ones(4)]
    tail = (1e-5, 0, 1, 0.0)
    forward = (x, x + 1, *vectors, *running, training, 0.1, *tail)
    torch.library.opcheck(ops.forward.default, forward, test_utils="test_schema")
    _, m, E, V = ops.forward(*forward)
    if not training:
        inference = (x, x + 1, *vectors, *running, *tail)
        torch.library.opcheck(ops.inference.default, inference, test_utils="test_schema")
        assert torch.equal(ops.inference(*inference), ops.forward(*forward)[0])
    backward = (x + 2, x, x + 1, m, E, V, *vectors, training, *tail, True, True)
    torch.library.opcheck(ops.backward.default, backward, test_utils="test_schema")


def test_op_runs_the_kernel(ops):
    x = torch.randn(3, 4, 5)
    assert torch.allclose(ops.mean(x), phases.mean(x), rtol=0, atol=1e-6)


def test_reason_when_triton_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    library = torch.library.Library("rbnorm_without_triton", "FRAGMENT")
    assert register(library) == "Triton is not installed"


def test_wrong_arguments_are_refused_before_a_launch(ops):
    x, table = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
    with pytest.raises(RuntimeError, match=r"scale must have shape \(2, 3\) .* got \(3, 2\)"):
        ops.affine(x, None, table.T, table, None, 0, 0.0)
    with pytest.raises(RuntimeError, match="shift must be float32, got float64"):
        ops.affine(x, None, table, table.double(), None, 0, 0.0)
