"""``rbnorm study location``: measure every condition that the records lack, and print the table."""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from rbnorm_cli.names import check_condition
from rbnorm_lab.corruptions import corrupt
from rbnorm_lab.devices import device_name, device_of
from rbnorm_lab.domains.config import DomainRun
from rbnorm_lab.domains.images import load_domains, unchanged
from rbnorm_lab.errors import UsageError, at_least, first_line
from rbnorm_lab.folders import check_folder, make_folder
from rbnorm_lab.imagefolder import folder_of, squares
from rbnorm_lab.imagenet import IMAGENET_MOMENTS
from rbnorm_lab.lines import append_line, read_lines
from rbnorm_lab.location.answer import CHOICES, Located, located, verdict
from rbnorm_lab.location.measure import SIGNALS, location
from rbnorm_lab.models import build_model
from rbnorm_lab.records import environment, now
from rbnorm_lab.state_files import read_state

RECORDS: Final = "location.jsonl"
_BATCH: Final = 64
_SEED: Final = 0
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A network and two data sets, made when it is their turn."""

    condition: str
    run: dict[str, Any]
    make: Callable[[], tuple[nn.Module, Batches, Batches]]


def location_study(options: argparse.Namespace, command: str) -> None:
    """Run, and print what the records say.

    Raises:
        UsageError: It cannot be run as asked.
    """
    check_folder(options.out)
    at_least(1, limit=options.limit, image_size=options.image_size)
    path = options.out / RECORDS
    done = {record.get("condition"): record.get("run") for record in read_lines(path)}
    if not options.no_run:
        device = device_of(options.device)
        for case in _cases(options, device):
            if case.condition in done:
                if done[case.condition] != case.run:
                    raise UsageError(
                        f"{path} has {case.condition} of another network, other images or another "
                        "number of them: choose another --out"
                    )
                continue
            make_folder(options.out)
            model, first, second = case.make()
            facts = {
                "run": case.run,
                "command": command,
                "device": device_name(device),
                "environment": environment(),
                "created": now(),
            }
            found = location(model, first, second, case.condition)
            append_line(path, *({**record, **facts} for record in found))
    try:
        show(located(read_lines(path)))
    except KeyError as error:
        raise UsageError(
            f"{path} has a condition without {error}: remove its lines, or choose another --out"
        ) from error


def show(found: list[Located]) -> None:
    """Print the rank correlations, the gains and the verdict."""
    correlations = Table("condition", *SIGNALS, title="rank correlation with the gain of a layer")
    gains = Table(
        *("condition", "layers", "clean, %", "as it is", *CHOICES.values()),
        title="accuracy, and points won by the named layers, as many others, and all",
    )
    for one in found:
        cells = [
            f"{c.value:+.2f}\n[{c.low:+.2f}, {c.high:+.2f}]" for c in one.correlations.values()
        ]
        correlations.add_row(one.condition, *cells)
        gains.add_row(
            one.condition,
            f"{one.named}/{one.layers}",
            f"{100 * one.clean:.1f}",
            f"{100 * one.accuracy:.1f}",
            *(f"{100 * one.gains[name]:+.1f}" for name in CHOICES),
        )
    console = Console(width=max(100, Console().width))
    for what in (correlations, gains, verdict(found).en):
        console.print(what)


def _cases(options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    for path in options.kept:
        yield _domain(path, _kept_run(path), options, device)
    if options.weights is not None:
        images, labels, classes = _pictures(options.images, options.image_size, options.limit)
        model = build_model(options.model, "bn", classes=classes, channels=3, seed=0)
        try:
            model.load_state_dict(read_state(options.weights))
        except RuntimeError as error:
            raise UsageError(
                f"{options.weights} does not fit {options.model} ({first_line(error)})"
            ) from error
        model = model.eval().to(device)
        clean = _batches(images, labels, device)
        facts = {"model": options.model, **_facts(options, options.weights)}
        for condition in options.conditions:
            chosen = check_condition(condition)
            yield Case(
                condition,
                facts,
                lambda chosen=chosen: (  # type: ignore[misc]
                    model,
                    clean,
                    _batches(corrupt(images, chosen[0], chosen[1], _SEED), labels, device),
                ),
            )


def _kept_run(path: Path) -> DomainRun:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return DomainRun.from_dict(json.loads((file.metadata() or {})["run"]))
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path} is no network that study domains kept ({first_line(error)})"
        ) from error


def _facts(options: argparse.Namespace, weights: Path) -> dict[str, Any]:
    """What a condition's numbers depend on, besides its name."""
    return {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest()[:16],
        "images": options.images.name,
        "image_size": options.image_size,
        "limit": options.limit,
    }


def _domain(path: Path, run: DomainRun, options: argparse.Namespace, device: torch.device) -> Case:
    def make() -> tuple[nn.Module, Batches, Batches]:
        images = load_domains(options.images, run.image_size)
        classes = len(images.classes)
        model = build_model(run.model, run.norm, classes=classes, channels=3, seed=run.seed)
        model.load_state_dict(read_state(path))
        first, second = (
            [
                (x.to(device), y.to(device))
                for batch, labels in unchanged(images, chosen[: options.limit])
                for x, y in zip(batch.split(_BATCH), labels.split(_BATCH), strict=True)
            ]
            for chosen in (
                _shuffled(images.source_test(run.target)),
                images.target_test(run.target),
            )
        )
        return model.eval().to(device), first, second

    return Case(f"domain {run.target}", {**asdict(run), **_facts(options, path)}, make)


def _shuffled(indices: Tensor) -> Tensor:
    return indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(_SEED))]


def _pictures(folder: Path, side: int, limit: int) -> tuple[Tensor, Tensor, int]:
    """Images from 0 to 1 (N, 3, S, S) in a random but fixed order, labels, number of classes."""
    found = folder_of(folder, None)
    chosen = _shuffled(torch.arange(len(found.samples)))[:limit].tolist()
    images = squares((found.samples[i][0] for i in chosen), side).float() / 255
    return images, torch.tensor([found.samples[i][1] for i in chosen]), len(found.classes)


def _batches(images: Tensor, labels: Tensor, device: torch.device) -> Batches:
    mean, std = (torch.tensor(moment).view(3, 1, 1) for moment in IMAGENET_MOMENTS)
    standardised = ((images - mean) / std).to(device)
    return list(zip(standardised.split(_BATCH), labels.to(device).split(_BATCH), strict=True))
