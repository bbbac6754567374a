"""Versions, the card, and what a copy moves: the floor of everything."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator

import torch
import triton

import rbnorm
from tools.gpu_report.clock import in_turn
from tools.gpu_report.options import Options, Row

NAME, SECONDS, WORKERS = "machine", 40, 1


def cases(options: Options) -> list[str]:
    """Versions first."""
    return ["versions", "copy"]


def run(case: str, options: Options) -> Iterator[Row]:
    """One row each."""
    if case == "versions":
        yield {
            "rbnorm": rbnorm.__version__,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
            "compiler": shutil.which("g++"),
            "cudnn": torch.backends.cudnn.version(),
            "argv": sys.executable,
            **(_card() if options.cuda else {"card": "none: Triton's interpreter"}),
        }
        return
    for mebibytes in (8, 32, 128, 1024) if options.cuda else (1,):
        source = torch.randn(mebibytes * 2**18, device=options.device)
        target = torch.empty_like(source)
        us = in_turn({"copy": [lambda: target.copy_(source)]}, options)["copy"]  # noqa: B023
        yield {"copy_mib": mebibytes, "us": us, "gb_per_s": 2 * source.nbytes / us / 1e3}


def _card() -> Row:
    card = torch.cuda.get_device_properties(0)
    return {
        "card": card.name,
        "multiprocessors": card.multi_processor_count,
        "gib": round(card.total_memory / 2**30, 1),
        "cache_mib": card.L2_cache_size / 2**20,
    }
