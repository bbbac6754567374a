"""Representative Batch Normalization for PyTorch."""

from rbnorm import functional, reference
from rbnorm._version import __version__
from rbnorm.convert import convert_batchnorm
from rbnorm.lazy import (
    LazyRepresentativeBatchNorm1d,
    LazyRepresentativeBatchNorm2d,
    LazyRepresentativeBatchNorm3d,
)
from rbnorm.modules import (
    RepresentativeBatchNorm1d,
    RepresentativeBatchNorm2d,
    RepresentativeBatchNorm3d,
    RepresentativeBatchNormAct2d,
)
from rbnorm.ops import backends, use_backend
from rbnorm.revert import RevertReport, revert_batchnorm

__all__ = [
    "LazyRepresentativeBatchNorm1d",
    "LazyRepresentativeBatchNorm2d",
    "LazyRepresentativeBatchNorm3d",
    "RepresentativeBatchNorm1d",
    "RepresentativeBatchNorm2d",
    "RepresentativeBatchNorm3d",
    "RepresentativeBatchNormAct2d",
    "RevertReport",
    "__version__",
    "backends",
    "convert_batchnorm",
    "functional",
    "reference",
    "revert_batchnorm",
    "use_backend",
]
