"""From the options of a command to what it runs; each imports only what it needs."""

# ruff: noqa: PLC0415

import argparse
from dataclasses import fields

from rbnorm_lab.errors import UsageError
from rbnorm_lab.finished import shown_again
from rbnorm_lab.names import LRASPP, corruption, items, study_names


def compare(options: argparse.Namespace, command: str) -> None:
    """``rbnorm compare``."""
    if shown_again(options.out, command):
        return
    from rbnorm_lab.checkpoints import saved_path
    from rbnorm_lab.studies import command as module
    from rbnorm_lab.studies.study import Settings
    from rbnorm_lab.studies.work import Sources

    if not (items(options.norms) and items(options.batch_sizes)):
        raise UsageError("a comparison needs at least one norm and one batch size")
    images = [] if options.model == LRASPP else options.shifted  # scenes have no corrupted labels
    shifted = [corruption(name) for name in items(images)]
    conditions = tuple(f"{kind}/{severity}" for kind, severity in filter(None, shifted))
    settings = Settings.of(
        vars(options),
        shift="controls" if conditions else "none",
        conditions=conditions,
    )
    folder = options.out / "models"
    how = module.How(
        Sources(root=options.data_root),
        keep=lambda config: saved_path(folder, config) if options.save_models else None,
    )
    module.study(["compare"], settings, options.out, command, how)


def study(options: argparse.Namespace, command: str) -> None:
    """``rbnorm study``."""
    if shown_again(options.out, command):
        return
    from rbnorm_lab.studies import command as module
    from rbnorm_lab.studies.study import Settings
    from rbnorm_lab.studies.work import Sources

    names = study_names(items(options.names))
    settings = Settings.of(vars(options))
    how = module.How(
        Sources(root=options.data_root and options.data_root.resolve()),
        shard=options.shard,
        ray=options.ray,
        run=not options.no_run,
    )
    module.study(names, settings, options.out, command, how)


def study_domains(options: argparse.Namespace, command: str) -> None:
    """``rbnorm study domains``."""
    from rbnorm_lab.domains import settings as own
    from rbnorm_lab.store import Store
    from rbnorm_lab.studies import command as module
    from rbnorm_lab.studies.work import Sources

    settings = own.settings_of(vars(options))
    how = module.How(
        Sources() if options.no_run else own.sources_of(options),
        shard=options.shard,
        run=not options.no_run,
        keep=own.kept_in(options.out) if options.keep_models else lambda config: None,
    )
    settings = own.completed(settings, how.sources.images, Store(options.out))
    module.study(["domains"], settings, options.out, command, how)


def train(options: argparse.Namespace, command: str) -> None:
    """``rbnorm train``."""
    from rbnorm_lab.processes import count_processes
    from rbnorm_lab.training import command as module

    config = module.config_of(vars(options), count_processes())
    module.train(config, options.out, options.data_root)


def diagnose(options: argparse.Namespace, command: str) -> None:
    """``rbnorm diagnose``."""
    from rbnorm_lab import diagnose as module
    from rbnorm_lab.subject import Request

    values = {field.name: getattr(options, field.name) for field in fields(Request)}
    module.diagnose(Request(**values), options.out, command)


def explain(options: argparse.Namespace, command: str) -> None:
    """``rbnorm explain``."""
    from rbnorm_lab.explain import page as module

    module.explain(options.out, command)


def bench(options: argparse.Namespace, command: str) -> None:
    """``rbnorm bench``."""
    from rbnorm_lab.bench import command as module

    module.bench(items(options.parts), options.repeats, options.device, options.out)
