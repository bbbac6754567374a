"""What batch statistics do to the instances of a model's own data, and what RBN learnt."""

from rbnorm.diagnosis.images import ImageShift
from rbnorm.diagnosis.recalibration import recalibrate
from rbnorm.diagnosis.result import Diagnosis, LayerDiagnosis
from rbnorm.diagnosis.run import diagnose

__all__ = [
    "Diagnosis",
    "ImageShift",
    "LayerDiagnosis",
    "diagnose",
    "recalibrate",
]
