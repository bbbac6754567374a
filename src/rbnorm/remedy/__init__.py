"""What wins back the accuracy that a model loses on other data, tried on the spot."""

from rbnorm.diagnosis.scores import Interval
from rbnorm.remedy.moments import MatchMoments
from rbnorm.remedy.result import Remedies, Remedy
from rbnorm.remedy.run import remedies
from rbnorm.remedy.trials import FineTuning

__all__ = ["FineTuning", "Interval", "MatchMoments", "Remedies", "Remedy", "remedies"]
