"""Devices, processes and threads of a training."""

from typing import Final

import torch
from accelerate import Accelerator, PartialState

from rbnorm_lab.data import ImageData, first_images
from rbnorm_lab.errors import UsageError, first_line

_SMALL_IMAGE: Final = 16 * 16  # pixels


def choose_threads(data: ImageData) -> None:
    """Use one thread for images so small that waking a second one costs what it saves.

    Measured on 2 cores with 8 x 8 images: equally fast on an idle machine, and three times as fast
    on a busy one.
    """
    images, _ = first_images(data.test, 1)
    if images[0, 0].numel() <= _SMALL_IMAGE:
        torch.set_num_threads(1)


def count_processes() -> int:
    """How many processes train together: those of ``torchrun`` or ``accelerate launch``, or 1."""
    processes: int = PartialState(cpu=_on_cpu()).num_processes
    return processes


def _on_cpu() -> bool:
    # accelerate joins processes without an accelerator only when told that they are on the CPU
    return not torch.accelerator.is_available()


def make_accelerator(mixed_precision: str) -> Accelerator:
    """What places tensors, casts and gathers.

    Args:
        mixed_precision: One of :data:`rbnorm_lab.config.MIXED_PRECISIONS`.

    Raises:
        UsageError: The device cannot compute in this precision.
    """
    if _on_cpu() and mixed_precision == "fp16":  # accelerate would compute in float32
        raise UsageError(
            "mixed precision 'fp16' needs an accelerator and there is none: choose no or bf16"
        )
    try:
        return Accelerator(cpu=_on_cpu(), mixed_precision=mixed_precision)
    except ValueError as error:
        raise UsageError(
            f"mixed precision {mixed_precision!r} is not available here ({first_line(error)})"
        ) from error


def device_of(name: str | None) -> torch.device:
    """The device of this name, or the accelerator there is.

    Raises:
        UsageError: There is none of this name here.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name!r} is not available here ({first_line(error)})") from error


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
