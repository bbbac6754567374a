"""BatchNorm whose output every instance gates by its input's mean, with which RBN is compared."""

from typing import Any

import torch
from torch import Tensor, nn

from rbnorm.definition import per_channel


class InstanceEnhancementBatchNorm2d(nn.BatchNorm2d):
    r"""Instance Enhancement Batch Normalization (IEBN).

    .. math::

        y = \gamma\, \sigma(a K(x) + b)\, \hat x + \beta

    where :math:`\hat x` is what BatchNorm normalises ``x`` to, in training and in evaluation, and
    :math:`K` the mean over the positions of an instance. It differs from RBN without centring in
    what the gate sees: here the mean of the input, whatever the batch; there the mean of
    :math:`\hat x`. And it starts more closed, at :math:`\sigma(-1) = 0.27` against
    :math:`\sigma(1) = 0.73`.

    Args: As of ``torch.nn.BatchNorm2d``.

    Attributes:
        gate_weight: :math:`a` of shape (C,), initially 0.
        gate_bias: :math:`b` of shape (C,), initially -1.

    Shape: (N, C, H, W) to the same, any floating dtype that BatchNorm takes.

    Source: Liang et al., *Instance Enhancement Batch Normalization: an Adaptive Regulator of Batch
    Noise*, AAAI 2020, and the initial values of the authors' code.
    """

    def __init__(self, num_features: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.gate_weight = nn.Parameter(torch.zeros(num_features))
        self.gate_bias = nn.Parameter(torch.full((num_features,), -1.0))

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, and gate all but the shift."""
        normalised = super().forward(input)
        means = input.mean((2, 3), keepdim=True)
        scores = per_channel(self.gate_weight, input) * means + per_channel(self.gate_bias, input)
        gate = scores.sigmoid().to(normalised.dtype)
        if self.bias is None:
            return gate * normalised
        shift = per_channel(self.bias, input).to(normalised.dtype)
        return torch.lerp(shift, normalised, gate)
