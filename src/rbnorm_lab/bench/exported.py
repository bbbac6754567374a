"""Exported models in the runtimes that people deploy with."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from rbnorm.diagnosis import recalibrate
from rbnorm.export import fold, to_onnx
from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm_lab.bench.candidates import Subject
from rbnorm_lab.bench.cases import BASELINE, Case
from rbnorm_lab.errors import UsageError
from rbnorm_lab.models import build_model

_ACTIVE: Final = 0.1  # share of the layers, at the end as in results/diagnose-digits
_TOLERANCE: Final = 0.01
Run = Callable[[Any], object]


def _onnxruntime(path: Path) -> Run:
    import onnxruntime  # noqa: PLC0415 - of the extra `export`

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def _openvino(path: Path) -> Run:
    import openvino  # noqa: PLC0415

    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return openvino.Core().compile_model(path, "CPU", options)  # type: ignore[no-any-return]


RUNTIMES: Final[dict[str, Callable[[Path], Run]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
"""What loads a file of ONNX, by the runtime's name, which is its package's."""


def exported(case: Case, device: torch.device, runtime: str, name: str) -> list[Subject]:
    """The model with BatchNorm; with RBN folded, all active and mostly inert; with RBN as it is.

    Raises:
        UsageError: The device is no CPU, or the runtime is not installed.
    """
    if device.type != "cpu":
        raise UsageError(f"part {case.part} is measured on the CPU, not on {device.type}")
    missing = [p for p in ("onnx", "onnxscript", runtime) if importlib.util.find_spec(p) is None]
    if missing:
        raise UsageError(
            f"part {case.part} needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )
    torch.manual_seed(0)
    example = torch.randn(8, 3, 64, 64)
    batchnorm, rbn, inert = (
        build_model(name, norm, classes=1000, channels=3, seed=0) for norm in ("bn", "rbn", "rbn")
    )
    for module, active in ((batchnorm, 1.0), (rbn, 1.0), (inert, _ACTIVE)):
        _calibrate(recalibrate(module, [example]).eval(), active)
    inert = fold(inert, example, tolerance=_TOLERANCE).model
    images = np.random.default_rng(0).standard_normal(case.shape, dtype=np.float32)
    found = []
    for label, module in {
        BASELINE: batchnorm,
        "rbnorm": fold(rbn, example).model,
        "rbnorm inert": inert,
        "rbnorm not folded": rbn,
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            to_onnx(module, example).save(path)
            run = RUNTIMES[runtime](path)
        found.append(Subject(label, runtime, (partial(run, images),)))
    return found


@torch.no_grad()
def _calibrate(model: nn.Module, active: float) -> None:
    """Parameters as if trained; at their initial values the layers would fold wholly.

    The last layers, a share of ``active``, move their output visibly, and the others hardly.
    """
    layers = [m for m in model.modules() if isinstance(m, _RepresentativeBatchNorm)]
    inert = round(len(layers) * (1 - active))
    for number, layer in enumerate(layers):
        for vector in (layer.center_weight, layer.scale_weight):
            assert vector is not None
            nn.init.normal_(vector, std=1e-4 if number < inert else 1e-1)
