"""From the options of a command to what it runs; each imports only what it needs."""

# ruff: noqa: PLC0415

import argparse
import time
from dataclasses import fields

from rbnorm_cli.names import items


def compare(options: argparse.Namespace, command: str) -> None:
    """``rbnorm compare``."""
    from rbnorm_lab import compare as module

    asked = module.Comparison.of(vars(options))
    module.compare(asked, options.out, command, save_models=options.save_models)


def study(options: argparse.Namespace, command: str) -> None:
    """``rbnorm study``."""
    from rbnorm_lab.studies import arms
    from rbnorm_lab.studies import command as module

    module.study(
        items(options.names),
        arms.Settings.of(vars(options)),
        options.out,
        command,
        data_root=options.data_root,
        shard=options.shard,
        ray=options.ray,
        run=not options.no_run,
        only_estimate=options.estimate,
    )


def study_domains(options: argparse.Namespace, command: str) -> None:
    """``rbnorm study domains``."""
    start = time.monotonic()
    from rbnorm_lab.domains import command as module
    from rbnorm_lab.domains.plan import DomainSettings

    settings = DomainSettings.of(vars(options))
    if not options.no_run:
        limits = module.Limits(**{f.name: getattr(options, f.name) for f in fields(module.Limits)})
        module.domains(options.images, options.weights, settings, options.out, limits, start)
    if not (options.no_page or options.estimate):
        from rbnorm_lab.domains.page import draw

        draw(options.out, settings, command)


def study_gradients(options: argparse.Namespace, command: str) -> None:
    """``rbnorm study gradients``."""
    from rbnorm_lab import gradients as module

    module.gradients_study(options)


def train(options: argparse.Namespace, command: str) -> None:
    """``rbnorm train``."""
    from rbnorm_lab.processes import count_processes
    from rbnorm_lab.training import command as module

    module.train(module.Request.of(vars(options), count_processes()), options.out)


def diagnose(options: argparse.Namespace, command: str) -> None:
    """``rbnorm diagnose``."""
    from rbnorm_lab import diagnose as module

    values = {field.name: getattr(options, field.name) for field in fields(module.Request)}
    module.diagnose(module.Request(**values), options.out, command)


def explain(options: argparse.Namespace, command: str) -> None:
    """``rbnorm explain``."""
    from rbnorm_lab.explain import page as module

    module.explain(options.out, command)


def bench(options: argparse.Namespace, command: str) -> None:
    """``rbnorm bench``."""
    from rbnorm_lab.bench import command as module

    module.bench(items(options.parts), options.repeats, options.device, options.out)
