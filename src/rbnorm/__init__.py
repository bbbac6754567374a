"""Representative Batch Normalization for PyTorch."""

import importlib
from types import ModuleType

from rbnorm import definition, functional
from rbnorm._version import __version__
from rbnorm.convert import convert_batchnorm
from rbnorm.diagnosis import Diagnosis, LayerDiagnosis, Thresholds, diagnose, recalibrate
from rbnorm.integrations import when_imported
from rbnorm.integrity import assert_intact
from rbnorm.kernels import NoKernelsWarning, backends, use_backend
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
from rbnorm.record import convert_as_recorded, record_layers
from rbnorm.remedy import FineTuning, Remedies, Remedy, remedies
from rbnorm.revert import RevertReport, revert_batchnorm
from rbnorm.sync import (
    SyncRepresentativeBatchNorm,
    SyncRepresentativeBatchNormAct2d,
    convert_sync,
    revert_sync,
)
from rbnorm.tuning import freeze, parameter_groups, unfreeze

__all__ = [
    "Diagnosis",
    "FineTuning",
    "LayerDiagnosis",
    "LazyRepresentativeBatchNorm1d",
    "LazyRepresentativeBatchNorm2d",
    "LazyRepresentativeBatchNorm3d",
    "NoKernelsWarning",
    "Remedies",
    "Remedy",
    "RepresentativeBatchNorm1d",
    "RepresentativeBatchNorm2d",
    "RepresentativeBatchNorm3d",
    "RepresentativeBatchNormAct2d",
    "RevertReport",
    "SyncRepresentativeBatchNorm",
    "SyncRepresentativeBatchNormAct2d",
    "Thresholds",
    "__version__",
    "assert_intact",
    "backends",
    "convert_as_recorded",
    "convert_batchnorm",
    "convert_sync",
    "definition",
    "diagnose",
    "freeze",
    "functional",
    "parameter_groups",
    "recalibrate",
    "record_layers",
    "remedies",
    "revert_batchnorm",
    "revert_sync",
    "unfreeze",
    "use_backend",
]


def __getattr__(name: str) -> ModuleType:
    """Names of earlier versions."""
    if name == "reference":
        return importlib.import_module("rbnorm.reference")
    raise AttributeError(f"module 'rbnorm' has no attribute {name!r}")


def _register_with_opacus() -> None:
    from rbnorm.integrations.opacus import register  # noqa: PLC0415 - needs opacus

    register()


when_imported("opacus.validators", _register_with_opacus)
