"""``rbnorm diagnose``: a model and its data, then JSON and page."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress
from torch import nn

import rbnorm
from rbnorm.diagnosis.recalibration import changes
from rbnorm.models import files
from rbnorm_cli.names import check_shifted, class_names, data_name, model_file
from rbnorm_lab.batches import Batches, loader_of
from rbnorm_lab.cases import extremes
from rbnorm_lab.checkpoints import Saved, load_model, read_saved
from rbnorm_lab.conversion import conversion
from rbnorm_lab.data import ImageData
from rbnorm_lab.devices import device_of
from rbnorm_lab.diagnosis_page import Report, lines, write_page
from rbnorm_lab.errors import UsageError, at_least, first_line
from rbnorm_lab.feature_maps import feature_maps
from rbnorm_lab.findings import findings
from rbnorm_lab.folders import make_folder
from rbnorm_lab.progress import terminal
from rbnorm_lab.records import environment
from rbnorm_lab.subject import (
    Weights,
    kept,
    load_subject,
    placed,
    relabelled,
    shifted_batches,
)

_IMAGES: Final = 6  # shown with their feature maps
_TRAINING_IMAGES: Final = 1024  # at most, to re-estimate running statistics on
_BUDGET: Final = 300.0


@dataclass(frozen=True)
class Request:
    """What to diagnose; the fields are the options of the command."""

    model: str
    checkpoint: Path | None
    pretrained: bool
    random: bool
    converted: Path | None
    data: str | None
    data_root: Path | None
    shifted: str | None
    limit: int | None
    batch_size: int
    image_size: int | None
    classes: str | None
    device: str | None
    counterfactuals: bool
    remedies: bool
    budget: float | None
    fine_tune: int | None

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "image_size", "fine_tune"):
            at_least(1, **{name: getattr(self, name)})
        if self.fine_tune is not None and self.shifted is None:
            raise UsageError("--fine-tune needs --shifted: a remedy is for a second data set")
        at_least(1, classes=self.outputs)

    @property
    def outputs(self) -> int | None:
        """The number that ``--classes`` is or names."""
        if self.classes is None:
            return None
        try:
            return int(self.classes)
        except ValueError:
            return len(class_names(Path(self.classes)))

    @property
    def names(self) -> list[str] | None:
        """The names of the model's outputs, if ``--classes`` is a file."""
        if self.classes is None or self.classes.lstrip("-").isdecimal():
            return None
        return class_names(Path(self.classes))

    @property
    def weights(self) -> Weights:
        """Where a named model has its weights from."""
        return Weights(self.checkpoint, self.pretrained, self.random)


def diagnose(request: Request, out: Path, command: str) -> None:
    """Diagnose a model, print what was found, and write ``diagnosis.json`` and ``report.html``.

    Args:
        request: What to diagnose.
        out: Folder to write to; nothing is written before everything has been measured.
        command: The command line that does this again.

    Raises:
        UsageError: It cannot be done as asked.
    """
    device = device_of(request.device)
    path = model_file(request.model)
    saved = read_saved(path) if path else None
    if saved:  # it knows what it was trained on
        request = replace(
            request,
            data=request.data or saved.config.data,
            image_size=request.image_size or saved.config.image_size,
        )
    check_shifted(request.shifted)
    data, model = load_subject(
        request.model,
        request.weights,
        request.data,
        request.data_root,
        request.image_size,
        request.outputs,
        evaluation=request.fine_tune is None,
    )
    model = placed(model, device)
    other = _other(request, data, device)
    console = Console(file=sys.stdout)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    bars = terminal(stderr=True)
    with Progress(*columns, console=bars, disable=not bars.is_terminal) as progress:
        try:
            measured = _Measurement(request, data, model, progress)
            report = measured.report(other, _title(request, saved), command)
        except UsageError:
            raise
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"{request.model} cannot be diagnosed: {first_line(error)}") from error
    page = write_page(report)
    make_folder(out)
    files.replace(out / "diagnosis.json", _json(report))
    files.replace(out / "report.html", page.encode())
    for sentence in [*lines(report), *report.said]:
        console.print(
            f"- {escape(sentence.en)}", highlight=False, soft_wrap=not console.is_terminal
        )
    console.print(f"Report: {escape(str(out / 'report.html'))}", soft_wrap=True)


def _json(report: Report) -> bytes:
    found = report.result.to_dict()
    if report.remedies is not None:
        found["remedies"] = report.remedies.to_dict()
    found |= {"command": report.command, "environment": environment()}
    return f"{json.dumps(found, allow_nan=False, separators=(',', ':'))}\n".encode()


def _title(request: Request, saved: Saved | None) -> str:
    if saved:
        return f"{saved.config.model} ({saved.config.norm})"
    path = model_file(request.model)
    return path.stem if path else request.model


def _other(request: Request, data: ImageData, device: torch.device) -> nn.Module | None:
    """The model to compare with."""
    if request.converted is None:
        return None
    itself = read_saved(request.converted) is not None
    spec = str(request.converted) if itself else request.model
    weights = None if itself else request.converted
    classes = request.outputs or data.classes
    return placed(load_model(spec, weights, classes=classes, channels=data.channels), device)


class _Measurement:
    """Everything that is measured, with a bar for each part."""

    def __init__(
        self, request: Request, data: ImageData, model: nn.Module, progress: Progress
    ) -> None:
        self.request, self.data, self.model, self.progress = request, data, model, progress
        names = request.names
        name = data_name(request.data or "digits")
        test = relabelled(name, data.test, names) if names else data.test
        loader = loader_of(test, request.batch_size, request.limit)
        self.images = len(loader.dataset)  # type: ignore[arg-type]
        self.first, self.second = kept(loader), None
        if request.shifted is not None:
            found = shifted_batches(
                request.shifted,
                data,
                self.first,
                request.data_root,
                request.limit,
                request.batch_size,
                names,
            )
            self.second = found if request.shifted == "train" else kept(found)

    def tracked(self, batches: Any, name: str, passes: int = 1) -> Batches:
        """The batches on a bar of their own."""
        task = self.progress.add_task(name, total=passes * len(batches))
        return Batches(batches, lambda: self.progress.advance(task))

    def report(self, other: nn.Module | None, title: str, command: str) -> Report:
        """Measure."""
        training, passes = None, 1
        if self.request.counterfactuals:
            times = len(changes(self.model))
            images = loader_of(self.data.train, self.request.batch_size, _TRAINING_IMAGES)
            training, passes = self.tracked(images, "recalibrating", times), passes + times
        result = rbnorm.diagnose(
            self.model,
            self.tracked(self.first, "measuring", passes),
            shifted=None if self.second is None else self.tracked(self.second, "shifted"),
            recalibration=training,
        )
        worst = self.first if self.second is None else self.second
        images, _ = next(iter(self.first))
        return Report(
            result,
            findings(result, self.images),
            conversion(self.model, result, other, self.tracked(self.first, "conversion", 2)),
            feature_maps(self.model, result, images[:_IMAGES]),
            extremes(self.model, result, self.tracked(worst, "the four cases")),
            self.remedies(),
            title,
            command,
        )

    def remedies(self) -> rbnorm.Remedies | None:
        """What wins back the loss on the second data set, as far as the time goes."""
        request = self.request
        # the training images are augmented anew at every pass, so nothing could be paired
        if self.second is None or not request.remedies or request.shifted == "train":
            return None
        task = self.progress.add_task("remedies", total=100)
        tuning = None
        if request.fine_tune is not None:
            loader = loader_of(self.data.train, request.batch_size, None)
            tuning = rbnorm.FineTuning(loader, request.fine_tune)
        found = rbnorm.remedies(
            self.model,
            self.first,
            self.second,
            fine_tuning=tuning,
            budget=_BUDGET if request.budget is None else request.budget,
            on_trial=_advance(self.progress, task),
        )
        self.progress.update(task, completed=100, description="remedies")
        if math.isnan(found.unchanged.agreement[1]):
            raise UsageError(
                f"the output of {request.model} has no scores of classes, by which remedies are "
                "compared: give --no-remedies"
            )
        return found


def _advance(progress: Progress, task: Any) -> Callable[[str, float], None]:
    def on_trial(name: str, share: float) -> None:
        progress.update(task, completed=round(100 * share), description=f"remedies: {name}")

    return on_trial
