"""Each image's own mean and contrast, set to those of other images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from rbnorm.diagnosis.images import own_moments
from rbnorm.diagnosis.passes import first_tensor
from rbnorm.diagnosis.tally import Tally

_MOST: Final = 100.0  # the largest factor, so that a constant image stays constant
MATCHES: Final = ("mean", "contrast", "both")


class MatchMoments(nn.Module):
    r"""Give every image the mean, the contrast, or both, of the images that a model knows.

    With :math:`m` and :math:`s` the mean and (biased) standard deviation over all values of one
    image, :math:`M` and :math:`S` the wanted ones and :math:`t` the strength,

    .. math::

        y = (x - m) \left(\frac{S}{\max(s, S/100)}\right)^t + m + t\,(M - m) ,

    without the factor where the mean alone is matched, and without the last term where the contrast
    alone is. A constant image has no contrast to raise and stays constant. An image's result
    depends on no other image. There is nothing to train; training and evaluation are the same.

    A transform for ``torchvision.transforms.v2.Compose``, or the first module of a model. Put it
    where the images have the form that :meth:`of` saw, which for a model's own batches is after
    they were standardised; before images are padded, since padding counts as image.

    Args:
        mean: :math:`M`, a number for whole images, or one for each channel, (C,), which are then
            matched by themselves.
        std: :math:`S`, likewise; positive.
        match: "mean", "contrast" or "both".
        strength: :math:`t`, 1 for the whole way, 0.5 for half of it, which for the contrast is the
            geometric mean.
        dims: Axes of one instance: 3 for images (C, H, W), 2 for sequences (C, L), 4 for volumes.

    Shape:
        Input: (..., C, H, W), a single image or any number of them.
        Output: The same shape and dtype; statistics are taken in float32 at least. Whole numbers
        are rounded, and clipped to what their dtype holds.

    Raises:
        ValueError: A number is out of its range, or an input has fewer axes than ``dims``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: float | Sequence[float] | Tensor,
        std: float | Sequence[float] | Tensor,
        match: str = "both",
        strength: float = 1.0,
        dims: int = 3,
    ) -> None:
        super().__init__()
        if match not in MATCHES:
            raise ValueError(f"match must be one of {', '.join(MATCHES)}, got {match!r}")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be from 0 to 1, got {strength}")
        M, S = (torch.as_tensor(value, dtype=torch.float32) for value in (mean, std))
        if M.shape != S.shape or M.ndim > 1 or not (M.isfinite().all() and (S > 0).all()):
            raise ValueError(
                "mean and std must be finite numbers, one or one a channel, and std positive, got "
                f"{M.tolist()} and {S.tolist()}"
            )
        self.register_buffer("mean", M)
        self.register_buffer("std", S)
        self.match, self.strength, self.dims = match, strength, dims

    @classmethod
    def of(
        cls,
        batches: Iterable[Any],
        match: str = "both",
        strength: float = 1.0,
        *,
        by_channel: bool = False,
    ) -> MatchMoments:
        """Match the average mean and standard deviation of these images.

        Args:
            batches: Tensors (N, C, ...), or sequences or mappings with such a tensor in them.
            match: "mean", "contrast" or "both".
            strength: 1 for the whole way, 0.5 for half of it.
            by_channel: Every channel by itself, colours too; False for whole images.

        Raises:
            ValueError: There is no image, or one is constant or not finite in all channels.
        """
        tally, dims = Tally(), 0
        for batch in batches:
            x = first_tensor(batch)
            if x is None or x.ndim < 3:
                raise ValueError("batches must hold tensors (N, C, ...), got a batch without one")
            dims = x.ndim - 1
            mean, std = own_moments(x.detach().cpu(), dims, by_channel)
            tally.add(torch.stack([mean.flatten(1), std.flatten(1)], 1).double())
        if not dims:
            raise ValueError("batches must hold at least one batch, got none")
        M, S = tally.result()[1]
        return cls(*((M, S) if by_channel else (M[0], S[0])), match, strength, dims)

    def forward(self, input: Tensor) -> Tensor:
        """Match every image."""
        if input.ndim < self.dims:
            raise ValueError(f"input must have {self.dims} axes or more, got {input.ndim}")
        m, s = own_moments(input, self.dims, by_channel=bool(self.mean.ndim))
        shape = (-1, *(1,) * (self.dims - 1)) if self.mean.ndim else ()
        M, S = (v.reshape(shape).to(m.dtype) for v in (self.mean, self.std))
        y = input.to(m.dtype) - m
        if self.match != "mean":
            y = y * (S / s.clamp_min(S / _MOST)) ** self.strength
        y = y + (m if self.match == "contrast" else m.lerp(M, self.strength))
        if input.is_floating_point():
            return y.to(input.dtype)
        limits = torch.iinfo(input.dtype)
        return y.round().clamp(limits.min, limits.max).to(input.dtype)

    def extra_repr(self) -> str:
        """The options."""
        return f"match={self.match!r}, strength={self.strength}, dims={self.dims}"


@contextmanager
def matched(model: nn.Module, match: MatchMoments) -> Iterator[None]:
    """Show a model matched images."""

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        x = first_tensor((args, kwargs))
        if x is None:
            return None
        y = match.to(x.device)(x)
        return tree_map(lambda leaf: y if leaf is x else leaf, (args, kwargs))

    with model.register_forward_pre_hook(before, with_kwargs=True):
        yield
