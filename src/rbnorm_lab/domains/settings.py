"""What the options of ``rbnorm study domains`` ask for, beside what all studies have."""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rbnorm_lab.config import RunConfig
from rbnorm_lab.domains.images import DomainImages, load_domains
from rbnorm_lab.domains.run import Weights
from rbnorm_lab.errors import UsageError
from rbnorm_lab.processes import device_of
from rbnorm_lab.store import Store
from rbnorm_lab.studies.study import Settings
from rbnorm_lab.studies.work import Sources


def settings_of(options: Mapping[str, Any]) -> Settings:
    """The settings that the options ask for; targets that are not named are missing.

    Raises:
        UsageError: A value is out of range, or there is no such model.
    """
    return Settings.of(options, data=options["images"].name, trace=False)


def sources_of(options: argparse.Namespace) -> Sources:
    """The images, on the device of all runs from now on, and the pretrained weights.

    Raises:
        UsageError: One of them cannot be had.
    """
    device = device_of(options.device)
    os.environ["ACCELERATE_TORCH_DEVICE"] = options.device  # for the accelerator of every run
    images = load_domains(options.images, options.image_size).to(device)
    return Sources(images=images, weights=Weights(options.model, options.weights))


def completed(settings: Settings, images: DomainImages | None, store: Store) -> Settings:
    """With the targets: by default all, or without images those that have records.

    Raises:
        UsageError: There is no such domain, or the records are of other images.
    """
    records = [record for record in store.records.values() if record.config.target]
    known = images.domains if images else sorted({str(r.config.target) for r in records})
    if images and any(record.facts["images"] != images.digest for record in records):
        raise UsageError(
            f"the records in {store.folder} are of other images than those of {images.name} now: "
            "choose another --out"
        )
    targets = settings.targets or tuple(known)
    for name in targets:
        if name not in known:
            raise UsageError(f"unknown domain {name!r}: choose from {', '.join(known)}")
    return replace(settings, targets=targets)


def kept_in(out: Path) -> Callable[[RunConfig], Path | None]:
    """The files of BN's networks of seed 0, at its own rate."""

    def keep(config: RunConfig) -> Path | None:
        own = (config.norm, config.seed, config.shift) == ("bn", 0, "controls")
        return out / f"bn-{config.target}-seed0.safetensors" if own else None

    return keep
