"""The name that :mod:`rbnorm.definition` had in 0.1; it goes with 0.3.0."""

import warnings

from rbnorm.definition import RESTRICTIONS, STATISTICS, per_channel, resolve
from rbnorm.definition import literal_rbn as representative_batch_norm

__all__ = ["RESTRICTIONS", "STATISTICS", "per_channel", "representative_batch_norm", "resolve"]

warnings.warn(
    "rbnorm.reference goes with 0.3.0: it is rbnorm.definition, and its representative_batch_norm "
    "is literal_rbn",
    DeprecationWarning,
    stacklevel=2,
)
