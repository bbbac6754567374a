"""``rbnorm diagnose``: a model and its data, then JSON and page."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from torch import nn
from torch.utils.data import DataLoader

import rbnorm
from rbnorm.diagnosis.passes import normalisers
from rbnorm.diagnosis.recalibration import changes
from rbnorm.files import replace
from rbnorm.lab.batches import Batches, loader_of
from rbnorm.lab.checkpoints import Saved, load_model, read_saved
from rbnorm.lab.conversion import Conversion, conversion
from rbnorm.lab.corruptions import Corrupted
from rbnorm.lab.data import ImageData, load_data
from rbnorm.lab.diagnosis_page import write_page
from rbnorm.lab.errors import UsageError, first_line
from rbnorm.lab.feature_maps import FeatureMaps, feature_maps
from rbnorm.lab.findings import findings
from rbnorm.lab.folders import check_folder, make_folder
from rbnorm.lab.models import needs_rgb
from rbnorm_cli.names import check_shifted, corruption, data_name, model_file, model_name

_IMAGES: Final = 6  # shown with their feature maps
_TRAINING_IMAGES: Final = 1024  # at most, to re-estimate running statistics on


@dataclass(frozen=True)
class Request:
    """What to diagnose; the fields are the options of the command."""

    model: str
    checkpoint: Path | None
    converted: Path | None
    data: str | None
    data_root: Path | None
    shifted: str | None
    limit: int | None
    batch_size: int
    image_size: int | None
    classes: int | None
    device: str | None
    counterfactuals: bool

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "image_size", "classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1, not {value}")


def diagnose(request: Request, out: Path, command: str) -> None:
    """Diagnose a model, print what was found, and write ``diagnosis.json`` and ``report.html``.

    Args:
        request: What to diagnose.
        out: Folder to write to; nothing is written before everything has been measured.
        command: The command line that does this again.

    Raises:
        UsageError: It cannot be done as asked.
    """
    check_folder(out)
    device = _device(request.device)
    path = model_file(request.model)
    saved = read_saved(path) if path else None
    if saved:  # it knows what it was trained on
        request = dataclasses.replace(
            request,
            data=request.data or saved.config.data,
            image_size=request.image_size or saved.config.image_size,
        )
    check_shifted(request.shifted)
    data, model = _data_and_model(request)
    model = _place(model, device)
    other = None
    if request.converted is not None:
        converted_saved = read_saved(request.converted)
        spec = str(request.converted) if converted_saved else request.model
        weights = None if converted_saved else request.converted
        other = _place(_load(spec, weights, request, data), device)
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        try:
            result, change, maps, images = _measure(request, data, model, other, progress)
        except UsageError:
            raise
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"{request.model} cannot be diagnosed: {first_line(error)}") from error
    said = findings(result, images)
    make_folder(out)
    result.to_json(out / "diagnosis.json")
    page = write_page(result, said, change, maps, title=_title(request, saved), command=command)
    replace(out / "report.html", page.encode())
    console = Console(file=sys.stdout)
    for sentence in said:
        console.print(f"- {sentence}")
    console.print(f"Report: {out / 'report.html'}", soft_wrap=True)


def _title(request: Request, saved: Saved | None) -> str:
    if saved:
        return f"{saved.config.model} with {saved.config.norm}"
    path = model_file(request.model)
    return path.stem if path else request.model


def _place(model: nn.Module, device: torch.device) -> nn.Module:
    try:
        normalisers(model)
    except ValueError as error:
        raise UsageError(first_line(error)) from error
    return model.to(device)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name!r} cannot be had here ({first_line(error)})") from error


def _data_and_model(request: Request) -> tuple[ImageData, nn.Module]:
    """A model by name fits the data's classes and channels; a file's model has its own."""
    model = None
    if model_file(request.model):
        model = load_model(request.model, request.checkpoint, classes=0, channels=0)
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        rgb = first is not None and first.in_channels == 3
    else:
        rgb = needs_rgb(model_name(request.model))
    data = load_data(
        data_name(request.data or "digits"),
        request.data_root,
        rgb=rgb,
        image_size=request.image_size,
    )
    return data, model or _load(request.model, request.checkpoint, request, data)


def _load(spec: str, weights: Path | None, request: Request, data: ImageData) -> nn.Module:
    classes = request.classes or data.classes
    return load_model(spec, weights, classes=classes, channels=data.channels)


def _shifted(request: Request, data: ImageData, loader: DataLoader[Any]) -> Any:
    if request.shifted is None:
        return None
    corrupted = corruption(request.shifted)
    if corrupted:
        return Corrupted(loader, *corrupted, mean=data.mean, std=data.std)
    if request.shifted == "train":
        return loader_of(data.train, request.batch_size, request.limit)
    other = load_data(
        data_name(request.shifted),
        request.data_root,
        rgb=data.channels == 3,
        image_size=request.image_size,
    )
    return loader_of(other.test, request.batch_size, request.limit)


def _measure(
    request: Request, data: ImageData, model: nn.Module, other: nn.Module | None, progress: Progress
) -> tuple[rbnorm.Diagnosis, Conversion, FeatureMaps, int]:
    loader = loader_of(data.test, request.batch_size, request.limit)

    def tracked(batches: Any, name: str, passes: int = 1) -> Batches:
        task = progress.add_task(name, total=passes * len(batches))
        return Batches(batches, lambda: progress.advance(task))

    shifted = _shifted(request, data, loader)
    training, passes = None, 1
    if request.counterfactuals:
        times = len(changes(model))
        images = loader_of(data.train, request.batch_size, _TRAINING_IMAGES)
        training, passes = tracked(images, "recalibrating", times), passes + times
    result = rbnorm.diagnose(
        model,
        tracked(loader, "measuring", passes),
        shifted=None if shifted is None else tracked(shifted, "shifted"),
        recalibration=training,
    )
    change = conversion(model, result, other, tracked(loader, "conversion", 2))
    images, _ = next(iter(loader))
    maps = feature_maps(model, result, images[:_IMAGES])
    return result, change, maps, len(loader.dataset)  # type: ignore[arg-type]
