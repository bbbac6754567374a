"""The sweeps over big tensors, and who runs them on which device.

``mean``, ``moments``, ``affine``, ``grad_moments`` and ``grad_affine`` are the phases, the contract
of a backend: :class:`rbnorm.kernels.phases.Phases`. A backend may also have the whole layer by one
call each (:class:`rbnorm.kernels.phases.Whole`): on a CPU a channel stays in the cache from phase
to phase, in Triton no Python runs between the launches. The portable form serves every device.
"""

from rbnorm.kernels.backends import Kernels, active, backends, use_backend
from rbnorm.kernels.installation import NoKernelsWarning

__all__ = ["Kernels", "NoKernelsWarning", "active", "backends", "use_backend"]
