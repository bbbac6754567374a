"""Trained models without what training needs: folded layers, and ONNX."""

from rbnorm.export.fold import FoldReport, LayerFold, fold
from rbnorm.export.layer import FoldedRepresentativeBatchNorm
from rbnorm.export.onnx import OPSET, to_onnx

__all__ = [
    "OPSET",
    "FoldReport",
    "FoldedRepresentativeBatchNorm",
    "LayerFold",
    "fold",
    "to_onnx",
]
