"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def replace(path: Path, content: bytes) -> None:
    """Write a file, or leave what was there."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(content)
            file.close()
            os.chmod(file.name, 0o644)  # a temporary file is the owner's alone
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def own_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor by itself on the CPU, contiguous, with no memory in common."""
    contiguous = torch.contiguous_format
    return {n: t.detach().cpu().clone(memory_format=contiguous) for n, t in state.items()}


def safetensors_of(state: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A state dict as a file of safetensors, which the extra ``lab`` has."""
    import safetensors.torch  # noqa: PLC0415

    return safetensors.torch.save(own_tensors(state), metadata)
