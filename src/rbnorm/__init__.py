"""Representative Batch Normalization for PyTorch."""

from rbnorm import functional, reference
from rbnorm._version import __version__
from rbnorm.convert import convert_batchnorm
from rbnorm.diagnosis import Diagnosis, LayerDiagnosis, Thresholds, diagnose, recalibrate
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
    "Diagnosis",
    "LayerDiagnosis",
    "LazyRepresentativeBatchNorm1d",
    "LazyRepresentativeBatchNorm2d",
    "LazyRepresentativeBatchNorm3d",
    "RepresentativeBatchNorm1d",
    "RepresentativeBatchNorm2d",
    "RepresentativeBatchNorm3d",
    "RepresentativeBatchNormAct2d",
    "RevertReport",
    "Thresholds",
    "__version__",
    "backends",
    "convert_batchnorm",
    "diagnose",
    "functional",
    "recalibrate",
    "reference",
    "revert_batchnorm",
    "use_backend",
]
