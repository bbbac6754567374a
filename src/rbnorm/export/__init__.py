"""Trained models without what training needs: folded layers, and ONNX."""

from rbnorm.export.fold import FoldReport, fold
from rbnorm.export.layer import FoldedRepresentativeBatchNorm
from rbnorm.export.onnx import OPSET, to_onnx
from rbnorm.export.watch import LayerFold

__all__ = [
    "OPSET",
    "FoldReport",
    "FoldedRepresentativeBatchNorm",
    "LayerFold",
    "fold",
    "to_onnx",
]
