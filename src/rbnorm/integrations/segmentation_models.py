"""segmentation_models_pytorch: models that are saved and loaded with their RBN layers."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from rbnorm import hub

__all__ = ["from_pretrained", "save_pretrained"]


def save_pretrained(model: nn.Module, folder: str | PathLike[str], **kwargs: Any) -> None:
    """``model.save_pretrained(folder)``, and the record of the RBN layers beside it.

    Raises:
        ValueError: There is no RBN layer, or one has a callable option. Nothing is written.
    """
    hub.save(model, folder)
    model.save_pretrained(folder, **kwargs)  # type: ignore[operator]


def from_pretrained(folder: str | PathLike[str]) -> nn.Module:
    """Build the model that :func:`save_pretrained` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is broken, or does not fit the others.
    """
    import segmentation_models_pytorch as smp  # noqa: PLC0415

    path = Path(folder) / "config.json"
    model: nn.Module
    try:
        config = json.loads(path.read_text())
        kind = getattr(smp, config.pop("_model_class"))
        model = kind(**{**config, "encoder_weights": None})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} must be a config of save_pretrained, got {error}") from error
    return hub.load(model, folder).eval()
