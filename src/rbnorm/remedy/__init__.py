"""What wins back the accuracy that a model loses on other data, tried on the spot."""

from rbnorm.remedy.named import named_layers, own_shifts
from rbnorm.remedy.result import Remedies, Remedy
from rbnorm.remedy.run import remedies
from rbnorm.remedy.scores import Interval
from rbnorm.remedy.trials import FineTuning

__all__ = ["FineTuning", "Interval", "Remedies", "Remedy", "named_layers", "own_shifts", "remedies"]
