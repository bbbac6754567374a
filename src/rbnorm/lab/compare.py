"""The study behind ``rbnorm compare``: every norm, batch size and seed, then table and page."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from rbnorm.lab import analysis
from rbnorm.lab.checkpoints import save_model, saved_path
from rbnorm.lab.config import LR_BATCH_SIZE, RunConfig
from rbnorm.lab.data import ImageData, load_data
from rbnorm.lab.data import canonical_name as data_name
from rbnorm.lab.errors import UsageError
from rbnorm.lab.folders import check_folder
from rbnorm.lab.models import canonical_name as model_name
from rbnorm.lab.models import needs_rgb
from rbnorm.lab.norms import canonical_norm
from rbnorm.lab.processes import choose_threads, count_processes, make_accelerator
from rbnorm.lab.progress import progress_of_runs
from rbnorm.lab.records import Record
from rbnorm.lab.report import PAGE, write_report
from rbnorm.lab.store import RecordStore, select
from rbnorm.lab.train import check_run, steps_of, train_run


@dataclass(frozen=True)
class Study:
    """What to compare; the fields are those of :class:`~rbnorm.lab.config.RunConfig`, in plural.

    Attributes:
        seeds: Number of seeds, counted from 0.
        lr: Peak learning rate at batch size :data:`rbnorm.lab.config.LR_BATCH_SIZE`.
        data_root: Where the files of data sets are; see :func:`rbnorm.lab.data.load_data`.
    """

    data: str
    model: str
    norms: Sequence[str]
    batch_sizes: Sequence[int]
    seeds: int
    epochs: int
    lr: float
    weight_decay: float
    mixed_precision: str
    limit: int | None
    image_size: int | None
    workers: int
    data_root: Path | None

    def configs(self, processes: int) -> list[RunConfig]:
        """Every run; the seed varies slowest, so an interrupted study has whole pairs.

        Raises:
            UsageError: A field is out of range, or nothing is known by its name.
        """
        if self.seeds < 1:
            raise UsageError(f"seeds must be at least 1, not {self.seeds}")
        if not (self.norms and self.batch_sizes):
            raise UsageError("a study needs at least one norm and one batch size")
        data, model = data_name(self.data), model_name(self.model)
        norms = dict.fromkeys(map(canonical_norm, self.norms))
        return [
            RunConfig(
                data=data,
                model=model,
                norm=norm,
                batch_size=batch_size,
                seed=seed,
                epochs=self.epochs,
                lr=self.lr * batch_size / LR_BATCH_SIZE,
                weight_decay=self.weight_decay,
                mixed_precision=self.mixed_precision,
                limit=self.limit,
                image_size=self.image_size,
                workers=self.workers,
                processes=processes,
            )
            for seed in range(self.seeds)
            for batch_size in dict.fromkeys(self.batch_sizes)
            for norm in norms
        ]


def compare(study: Study, out: Path, command: str, *, save_models: bool = False) -> None:
    """Run what the records in ``out`` lack of a study, then print its table and draw its page.

    Nothing is written before every norm has been tried on the data. Under ``torchrun`` or
    ``accelerate launch`` every process calls this; the main one prints and writes.

    Args:
        study: What to compare.
        out: Folder of the records and the page.
        command: The command line that runs this study.
        save_models: Keep every trained model; a run without one is run again.

    Raises:
        UsageError: The study cannot be run as asked.
    """
    check_folder(out)
    configs = study.configs(count_processes())
    accelerator = make_accelerator(study.mixed_precision)
    store = RecordStore(out)
    done = store.load()
    data = load_data(
        configs[0].data,
        study.data_root,
        rgb=needs_rgb(configs[0].model),
        limit=study.limit,
        image_size=study.image_size,
        quiet=not accelerator.is_main_process,
    )
    choose_threads(data)
    models = out / "models" if save_models else None
    missing = [
        config
        for config in configs
        if config.key not in done or (models and not saved_path(models, config).exists())
    ]
    for config in missing:
        if config.seed == 0:
            check_run(config, data, accelerator.device)
    accelerator.wait_for_everyone()  # nobody writes before everybody has read
    if accelerator.is_main_process:
        store.create()
    _run(missing, data, store, models, main=accelerator.is_main_process)
    if accelerator.is_main_process:
        records = select(store.load(), configs)
        _print(records, out)
        write_report(records, out, command)
    accelerator.end_training()


def _run(
    configs: Sequence[RunConfig],
    data: ImageData,
    store: RecordStore,
    models: Path | None,
    *,
    main: bool,
) -> None:
    with progress_of_runs(24, disable=not main) as progress:
        study = progress.add_task("runs", total=len(configs))
        current = progress.add_task("", total=None)
        for config in configs:
            name = f"{config.norm}, batch {config.batch_size}, seed {config.seed}"
            progress.reset(current, total=steps_of(config, data), description=name)

            def keep(model: nn.Module, config: RunConfig = config) -> None:
                if models and main:
                    save_model(model, config, data, models)

            record = train_run(config, data, lambda: progress.advance(current), keep)
            if main:
                store.append(record)
            progress.advance(study)
        progress.remove_task(current)


def _print(records: Sequence[Record], out: Path) -> None:
    rows = analysis.summarise(records)
    table = Table(
        title=f"{records[0].config.model} on {records[0].config.data}: test accuracy",
        box=SIMPLE_HEAD,
    )
    for heading in ("batch", "norm", "seeds", "accuracy %", "minus BN, points", "p"):
        if heading == "norm":
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(
            str(row.batch_size),
            row.norm,
            str(len(row.accuracy.values)),
            analysis.with_margin(row.accuracy),
            analysis.with_interval(row.gain) if row.gain else "",
            analysis.p_value(row.gain.p) if row.gain else "",
            end_section=following is not None and following.batch_size != row.batch_size,
        )
    console = Console(file=sys.stdout)
    console.print(table)
    console.print(analysis.answer(rows))
    console.print(f"Report: {out / PAGE}", soft_wrap=True)
