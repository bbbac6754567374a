"""Representative Batch Normalization for PyTorch."""

import importlib
import sys

from rbnorm import definition, functional
from rbnorm._version import __version__
from rbnorm.diagnosis import Diagnosis, LayerDiagnosis, diagnose, recalibrate
from rbnorm.integrations import when_imported
from rbnorm.kernels import NoKernelsWarning, backends, use_backend
from rbnorm.layers.classes import (
    RepresentativeBatchNorm1d,
    RepresentativeBatchNorm2d,
    RepresentativeBatchNorm3d,
    RepresentativeBatchNormAct2d,
)
from rbnorm.layers.lazy import (
    LazyRepresentativeBatchNorm1d,
    LazyRepresentativeBatchNorm2d,
    LazyRepresentativeBatchNorm3d,
)
from rbnorm.layers.sync import (
    SyncRepresentativeBatchNorm,
    SyncRepresentativeBatchNormAct2d,
    convert_sync,
    revert_sync,
)
from rbnorm.models.convert import convert_batchnorm
from rbnorm.models.intact import assert_intact
from rbnorm.models.record import convert_as_recorded, record_layers
from rbnorm.models.revert import RevertReport, revert_batchnorm
from rbnorm.models.tuning import freeze, parameter_groups, unfreeze
from rbnorm.remedy import FineTuning, MatchMoments, Remedies, Remedy, remedies

__all__ = [
    "Diagnosis",
    "FineTuning",
    "LayerDiagnosis",
    "LazyRepresentativeBatchNorm1d",
    "LazyRepresentativeBatchNorm2d",
    "LazyRepresentativeBatchNorm3d",
    "MatchMoments",
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


def _register_with_opacus() -> None:
    from rbnorm.integrations.opacus import register  # noqa: PLC0415 - needs opacus

    register()


when_imported("opacus.validators", _register_with_opacus)

# Pickles of 0.1 and 0.2 have the former names of modules.
_FORMER = {
    "calibration": "layers.options",
    "deferred": "layers.deferred",
    "lazy": "layers.lazy",
    "modules": "layers.classes",
    "revert": "models.revert",
    "sync": "layers.sync",
}
for _old, _new in _FORMER.items():
    sys.modules[f"rbnorm.{_old}"] = importlib.import_module(f"rbnorm.{_new}")
