"""What is the same for every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """How a step runs.

    Attributes:
        device: "cuda", or "cpu" to try the script itself under Triton's interpreter.
        effort: "smoke" tries everything at the least size, "short" takes a few shapes of the
            "full" report.
        seconds: After these no further case is begun.
    """

    device: str
    effort: str
    seconds: float

    @property
    def cuda(self) -> bool:
        """Whether there is a device to wait for."""
        return self.device == "cuda"

    def choose(self, smoke: Any, short: Any, full: Any) -> Any:
        """One of three, by the effort."""
        return {"smoke": smoke, "short": short, "full": full}[self.effort]


def synchronize(options: Options) -> None:
    """Wait for the device."""
    if options.cuda:
        torch.cuda.synchronize()
