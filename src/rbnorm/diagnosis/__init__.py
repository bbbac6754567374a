"""What batch statistics do to the instances of a model's own data, and what RBN learnt."""

from rbnorm.diagnosis.meter import Thresholds
from rbnorm.diagnosis.recalibration import recalibrate
from rbnorm.diagnosis.result import BatchSpread, Counterfactual, Diagnosis, LayerDiagnosis
from rbnorm.diagnosis.run import diagnose

__all__ = [
    "BatchSpread",
    "Counterfactual",
    "Diagnosis",
    "LayerDiagnosis",
    "Thresholds",
    "diagnose",
    "recalibrate",
]
