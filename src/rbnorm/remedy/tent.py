"""TENT: a model that lowers the entropy of its own predictions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from rbnorm.diagnosis.passes import Forward, call, normalisers
from rbnorm.diagnosis.scores import logits_of
from rbnorm.layers.options import NAMES

_RATE = 1e-3


class Tent:
    """A twin of a model that adapts to what it predicts on, online (Wang et al., ICLR 2021).

    It normalises by the statistics of each batch. After every prediction one step of Adam (0.001)
    on the mean entropy of the predicted classes moves the affine parameters of the normalisers, and
    RBN's calibration.

    Args:
        model: A model that predicts scores of classes. It is not changed.
        forward: Runs a model on a batch.
        calibration: Adapt ``center_weight``, ``scale_weight`` and ``scale_bias`` too.

    Attributes:
        model: The twin.

    Raises:
        ValueError: No normaliser has parameters to adapt.
    """

    def __init__(
        self, model: nn.Module, forward: Forward = call, *, calibration: bool = True
    ) -> None:
        self.model, self.forward = copy.deepcopy(model).eval().requires_grad_(False), forward
        adapted: list[nn.Parameter] = []
        for layer in normalisers(self.model).values():
            layer.training, layer.momentum = True, 0.0
            own = layer.named_parameters(recurse=False)
            adapted += [p for name, p in own if calibration or name not in NAMES]
        if not adapted:
            raise ValueError("TENT needs a normaliser with affine parameters, got none")
        self.optimizer = torch.optim.Adam([p.requires_grad_() for p in adapted], _RATE)

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """The twin's output for a batch, before the step that the batch causes."""
        with torch.enable_grad():
            output = self.forward(model, batch)
            logits = logits_of(output)
            if logits is None:
                raise ValueError("TENT needs scores of classes, got an output without")
            log_p = logits.log_softmax(1)
            self.optimizer.zero_grad()
            (-(log_p.exp() * log_p).sum(1).mean()).backward()
            self.optimizer.step()
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output)
