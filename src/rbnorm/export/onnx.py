"""Models as ONNX graphs."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.export import Dim

OPSET: Final = 20
"""The version of ONNX's operators that :func:`to_onnx` writes."""


def _axes(leaf: object, spatial: bool) -> dict[int, object] | None:
    if not isinstance(leaf, Tensor):
        return None
    return dict.fromkeys([0, *(range(2, leaf.ndim) if spatial else ())], Dim.DYNAMIC)


def to_onnx(
    model: nn.Module, inputs: Tensor | tuple[object, ...], *, spatial: bool = True
) -> torch.onnx.ONNXProgram:
    """Export a model in evaluation mode, by torch's dynamo exporter, in opset :data:`OPSET`.

    The batch size, and the spatial sizes unless the model needs fixed ones, are free in the
    graph. Fold the model first (:func:`rbnorm.export.fold`) for the smallest graph. Needs the
    extra ``export``.

    Args:
        model: The model; RBN layers become plain operators.
        inputs: A batch of at least 2 instances, or a tuple of arguments of which the tensors are
            such batches.
        spatial: Leave every axis from the third on free, too.

    Returns:
        The program: ``.save(path)`` writes it.

    Raises:
        ValueError: The model is in training mode, or a batch has fewer than 2 instances.
        torch.onnx.OnnxExporterError: Torch cannot export the model; with fixed sizes in it, pass
            ``spatial=False``.
    """
    if model.training:
        raise ValueError("model must be in evaluation mode to be exported, got training mode")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    for leaf in arguments:
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] < 2):
            raise ValueError(
                "inputs must be batches of at least 2 instances for the batch size to stay free, "
                f"got shape {tuple(leaf.shape)}"
            )
    program = torch.onnx.export(
        model,
        arguments,
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=tuple(_axes(leaf, spatial) for leaf in arguments),
        verbose=False,
    )
    assert program is not None
    return program
