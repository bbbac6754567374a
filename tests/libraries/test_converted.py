"""Programs for other runtimes, from models whose layers were not folded."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from models import trained
from torch import nn


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = OrderedDict(a=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), act=nn.ReLU())
    layers["b"] = nn.Conv2d(4, 2, 1)
    return trained(nn.Sequential(layers))


@torch.no_grad()
def test_pnnx_and_ncnn_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ncnn
    import pnnx

    monkeypatch.chdir(tmp_path)  # pnnx leaves its files here
    model, x = net(), torch.randn(1, 3, 9, 9)
    converted = pnnx.export(model, "net.pt", (x,), fp16=False)
    torch.testing.assert_close(converted(x), model(x), rtol=1e-5, atol=1e-6)
    runtime = ncnn.Net()
    runtime.load_param("net.ncnn.param")
    runtime.load_model("net.ncnn.bin")
    extractor = runtime.create_extractor()
    extractor.input("in0", ncnn.Mat(x[0].numpy().copy()))
    _, out = extractor.extract("out0")
    np.testing.assert_allclose(np.array(out), model(x)[0].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["traced", "exported"])
@torch.no_grad()
def test_coreml_has_every_operator(how: str) -> None:
    """Converted as a whole; only macOS runs the result."""
    import coremltools

    model, x = net(), torch.randn(1, 3, 9, 9)
    if how == "traced":
        inputs = [coremltools.TensorType(shape=x.shape)]
        program = coremltools.convert(torch.jit.trace(model, x), inputs=inputs)
    else:
        exported = torch.export.export(model, (x,)).run_decompositions({})
        program = coremltools.convert(exported)
    assert program.get_spec().WhichOneof("Type") == "mlProgram"
