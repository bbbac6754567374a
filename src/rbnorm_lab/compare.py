"""The study behind ``rbnorm compare``: every norm, batch size and seed, then table and page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from rbnorm_cli.names import items, numbers
from rbnorm_lab import analysis
from rbnorm_lab.checkpoints import save_model, saved_path
from rbnorm_lab.config import LR_BATCH_SIZE, RunConfig
from rbnorm_lab.data import ImageData, load_data
from rbnorm_lab.errors import UsageError, at_least
from rbnorm_lab.folders import check_folder
from rbnorm_lab.models import needs_rgb
from rbnorm_lab.norms import canonical_norm
from rbnorm_lab.processes import choose_threads, count_processes, make_accelerator
from rbnorm_lab.progress import progress_of_runs, terminal
from rbnorm_lab.records import Record
from rbnorm_lab.report import write_report
from rbnorm_lab.store import RecordStore, select
from rbnorm_lab.templates import PAGE
from rbnorm_lab.train import check_run, steps_of, train_run


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    Attributes:
        run: What all runs share; each has its own norm, batch size and seed.
        norms: The norms.
        batch_sizes: The batch sizes.
        seeds: Number of seeds, counted from 0.
        data_root: Where the files of data sets are; see :func:`rbnorm_lab.data.load_data`.
    """

    run: RunConfig
    norms: Sequence[str]
    batch_sizes: Sequence[int]
    seeds: int
    data_root: Path | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Comparison":
        """What the options of the command ask for.

        Raises:
            UsageError: A value is out of range, or nothing is known by its name.
        """
        norms, seeds = items(options["norms"]), options["seeds"]
        sizes = numbers("batch sizes", options["batch_sizes"], int)
        at_least(1, seeds=seeds)
        if not (norms and sizes):
            raise UsageError("a comparison needs at least one norm and one batch size")
        run = RunConfig.of(options, norm="bn", batch_size=sizes[0], seed=0)
        return cls(run, norms, sizes, seeds, options["data_root"])

    def configs(self, processes: int) -> list[RunConfig]:
        """Every run; the seed varies slowest, so an interrupted comparison has whole pairs.

        Raises:
            UsageError: A field is out of range, or there is no such norm.
        """
        norms = dict.fromkeys(map(canonical_norm, self.norms))
        return [
            replace(
                self.run,
                norm=norm,
                batch_size=batch_size,
                seed=seed,
                lr=self.run.lr * batch_size / LR_BATCH_SIZE,
                processes=processes,
            )
            for seed in range(self.seeds)
            for batch_size in dict.fromkeys(self.batch_sizes)
            for norm in norms
        ]


def compare(comparison: Comparison, out: Path, command: str, *, save_models: bool = False) -> None:
    """Run what the records in ``out`` lack, then draw the page and print the table.

    Nothing is written before every norm has been tried on the data. Under ``torchrun`` or
    ``accelerate launch`` every process calls this; the main one prints and writes.

    Args:
        comparison: What to compare.
        out: Folder of the records and the page.
        command: The command line that does this.
        save_models: Keep every trained model; a run without one is run again.

    Raises:
        UsageError: It cannot be done as asked.
    """
    check_folder(out)
    configs = comparison.configs(count_processes())
    accelerator = make_accelerator(comparison.run.mixed_precision)
    store = RecordStore(out)
    done = store.load()
    data = load_data(
        configs[0].data,
        comparison.data_root,
        rgb=needs_rgb(configs[0].model),
        limit=comparison.run.limit,
        image_size=comparison.run.image_size,
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
        write_report(records, out, command)
        _print(records, out, ran=len(missing))
        store.check_kept(configs)
    accelerator.end_training()


def _run(
    configs: Sequence[RunConfig],
    data: ImageData,
    store: RecordStore,
    models: Path | None,
    *,
    main: bool,
) -> None:
    with progress_of_runs(24, disable=not (main and configs)) as progress:
        study = progress.add_task("runs", total=len(configs))
        current = progress.add_task("", total=None)
        for config in configs:
            name = f"{config.norm}, batch {config.batch_size}, seed {config.seed}"
            progress.reset(current, total=steps_of(config, data), description=name)

            def keep(model: nn.Module, config: RunConfig = config) -> None:
                if models and main:
                    save_model(model, config, data, saved_path(models, config))

            record = train_run(config, data, lambda: progress.advance(current), keep)
            if main:
                store.append(record)
            progress.advance(study)
        progress.remove_task(current)


def _print(records: Sequence[Record], out: Path, *, ran: int) -> None:
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
    console = terminal()
    if not ran:
        console.print(f"Nothing left to run: all {len(records)} runs are in {out}.", soft_wrap=True)
    console.print(table)
    console.print(analysis.answer(rows).en)
    console.print(f"Report: {out / PAGE}", soft_wrap=True)
