"""``rbnorm diagnose``: a model and its data, then JSON and page."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from torch import nn

import rbnorm
from rbnorm.models import files
from rbnorm_lab.batches import Batches, loader_of
from rbnorm_lab.cases import extremes
from rbnorm_lab.checkpoints import Saved, read_saved
from rbnorm_lab.data import ImageData
from rbnorm_lab.diagnosis_page import Report, lines, write_page
from rbnorm_lab.errors import UsageError, first_line
from rbnorm_lab.findings import findings
from rbnorm_lab.folders import make_folder
from rbnorm_lab.names import model_file
from rbnorm_lab.processes import device_of
from rbnorm_lab.progress import progress_of_runs
from rbnorm_lab.records import environment
from rbnorm_lab.subject import Request, first_batches, load_subject, shifted_batches

_WIDTH: Final = 32  # of what stands before a bar


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
    data, model = load_subject(request)
    console = Console(file=sys.stdout)
    with progress_of_runs(_WIDTH) as progress:
        try:
            measured = _Measurement(request, data, model.to(device), progress)
            report = measured.report(_title(request, saved), command)
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


class _Measurement:
    """Everything that is measured, with a bar for each part."""

    def __init__(
        self, request: Request, data: ImageData, model: nn.Module, progress: Progress
    ) -> None:
        self.request, self.data, self.model, self.progress = request, data, model, progress
        self.first, self.second = first_batches(request, data), None
        if request.shifted is not None:
            self.second = shifted_batches(request, data, self.first)

    def tracked(self, batches: Any, name: str) -> Batches:
        """The batches on a bar of their own."""
        task = self.progress.add_task(name, total=len(batches))
        return Batches(batches, lambda: self.progress.advance(task))

    def report(self, title: str, command: str) -> Report:
        """Measure."""
        first = self.tracked(self.first, "measuring")
        second = None if self.second is None else self.tracked(self.second, "shifted")
        result = rbnorm.diagnose(self.model, first, shifted=second)
        worst = self.first if self.second is None else self.second
        return Report(
            result,
            findings(result, [of.images for of in (first, second) if of is not None]),
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
            budget=request.budget,
            on_trial=lambda name, share: self.progress.update(
                task, completed=round(100 * share), description=f"remedies: {name}"
            ),
        )
        self.progress.update(task, completed=100, description="remedies")
        if math.isnan(found.unchanged.agreement[1]):
            raise UsageError(
                f"the output of {request.model} has no scores of classes, by which remedies are "
                "compared: give --no-remedies"
            )
        return found
