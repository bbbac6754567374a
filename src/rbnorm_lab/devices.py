"""The device that the options ask for, and its name."""

import torch

from rbnorm_lab.errors import UsageError, first_line


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
