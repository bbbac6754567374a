"""``rbnorm study gradients``: what reaches RBN's parameters in the first steps, by initial gate."""

import argparse
import math
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

import torch
from rich.table import Table

from rbnorm.layers.base import _RepresentativeBatchNorm
from rbnorm_lab.config import RunConfig
from rbnorm_lab.data import ImageData
from rbnorm_lab.errors import UsageError
from rbnorm_lab.folders import check_folder
from rbnorm_lab.norms import canonical_norm
from rbnorm_lab.processes import choose_threads, make_accelerator
from rbnorm_lab.progress import terminal
from rbnorm_lab.records import environment, now
from rbnorm_lab.store import Store
from rbnorm_lab.studies.executors import data_of
from rbnorm_lab.text import Text
from rbnorm_lab.train import check_run, model_of
from rbnorm_lab.training.loop import Training, steps_of_epoch
from rbnorm_lab.training.order import training_batches

GATES: Final = (0.0, 1.0, 2.0, 4.0)
_REFERENCE: Final = 1.0
PARAMETERS: Final = {
    "w_m": "center_weight",
    "w_v": "scale_weight",
    "w_b": "scale_bias",
    "gamma": "weight",
}
Ratios = dict[tuple[float, bool], dict[str, float]]


@dataclass(frozen=True)
class GradientRecord:
    """The gradients of the first steps of a run.

    Attributes:
        config: The run.
        gradients: For each of :data:`PARAMETERS` the root mean square over the channels of all
            layers, step by step.
        environment: Versions, platform and commit.
        created: When, in UTC.
    """

    config: RunConfig
    gradients: dict[str, list[float]]
    environment: dict[str, str | None]
    created: str


def store_of(folder: Path) -> Store[GradientRecord]:
    """The records of a folder."""
    return Store(folder, "gradients.jsonl", GradientRecord, 1)


def gradients_study(options: argparse.Namespace) -> None:
    """Measure what the records lack, and print the table and the answer.

    Raises:
        UsageError: It cannot be run as asked.
    """
    check_folder(options.out)
    store = store_of(options.out)
    shared = RunConfig.of(vars(options), norm="rbn", seed=0, epochs=1, trace=False)
    configs = [
        replace(shared, norm=norm_of(w_b, compensated), seed=seed)
        for seed in range(options.seeds)
        for compensated in (False, True)
        for w_b in GATES
    ]
    if not options.no_run:
        done = store.load()
        _check_steps(options, [done[config.key] for config in configs if config.key in done])
        data = data_of(shared, options.data_root)
        most = steps_of_epoch(shared, data)
        if not 1 <= options.steps <= most:
            raise UsageError(
                f"steps must be from 1 to {most}, those of one epoch, not {options.steps}"
            )
        check_run(shared, data, torch.device("cpu"))
        store.create()
        for config in configs:
            if config.key not in done:
                found = first_gradients(config, data, options.steps)
                if not all(map(math.isfinite, chain.from_iterable(found.values()))):
                    raise UsageError(f"gradients at --lr {config.lr:g} are not finite: take less")
                store.append(GradientRecord(config, found, environment(), now()))
    records = store.load()
    show([records[config.key] for config in configs if config.key in records])


def _check_steps(options: argparse.Namespace, records: list[GradientRecord]) -> None:
    for record in records:
        (taken,) = {len(values) for values in record.gradients.values()}
        if taken != options.steps:
            raise UsageError(
                f"the records in {options.out} have {taken} steps, not {options.steps}: choose "
                "another --out"
            )


def norm_of(w_b: float, compensated: bool) -> str:
    """The norm that begins with this gate's bias, and with gamma divided by the gate or not."""
    return canonical_norm(f"rbn:scale_bias_init={w_b:g}" + ":preserve=yes" * compensated)


def first_gradients(config: RunConfig, data: ImageData, steps: int) -> dict[str, list[float]]:
    """The root mean square of each parameter's gradient over all layers, step by step."""
    choose_threads(data)
    training = Training(
        model_of(config, data), config, data, make_accelerator(config.mixed_precision)
    )
    batches = training_batches(config, data, 0, range(steps), training.device)
    found: dict[str, list[float]] = {name: [] for name in PARAMETERS}
    for _ in range(steps):
        training.advance(batches)
        layers = [m for m in training.module.modules() if isinstance(m, _RepresentativeBatchNorm)]
        for name, attribute in PARAMETERS.items():
            all_ = torch.cat([getattr(layer, attribute).grad for layer in layers])
            found[name].append(all_.double().square().mean().sqrt().item())
    return found


def ratios(records: list[GradientRecord], step: int = 0) -> Ratios:
    """By initial w_b and compensation each gradient over that at w_b = 1, mean over the seeds.

    Args:
        records: The records.
        step: Of which step; -1 for the last.
    """
    by_norm: dict[str, dict[int, GradientRecord]] = {}
    for record in records:
        by_norm.setdefault(record.config.norm, {})[record.config.seed] = record
    found: Ratios = {}
    for compensated in (False, True):
        base = by_norm.get(norm_of(_REFERENCE, compensated), {})
        for w_b in GATES:
            own = by_norm.get(norm_of(w_b, compensated), {})
            seeds = own.keys() & base.keys()
            if seeds:
                found[w_b, compensated] = {
                    name: sum(
                        own[s].gradients[name][step] / base[s].gradients[name][step] for s in seeds
                    )
                    / len(seeds)
                    for name in PARAMETERS
                }
    return found


def factor(w_b: float) -> float:
    """R'(w_b) / R(w_b) of the sigmoid, over that at w_b = 1."""
    return (1 + math.exp(_REFERENCE)) / (1 + math.exp(w_b))


def gradients_answer(records: list[GradientRecord]) -> Text:
    """The finding in one sentence."""
    first = ratios(records)
    if not all((w_b, True) in first for w_b in GATES):
        return Text("Not run.", "未运行。")
    last = ratios(records, -1)
    steps = len(records[0].gradients["w_b"])

    def said(w_b: float) -> str:
        values = first[w_b, True]
        return f"{values['w_b']:.2f} ({factor(w_b):.2f}, {last[w_b, True]['w_b']:.2f})"

    en = ", ".join(f"{said(w_b)} from w_b = {w_b:g}" for w_b in GATES if w_b != _REFERENCE)
    zh = "，".join(f"w_b = {w_b:g} 时为 {said(w_b)}" for w_b in GATES if w_b != _REFERENCE)
    w_m = [first[w_b, True]["w_m"] for w_b in GATES]
    span = f"{min(w_m):.2f}–{max(w_m):.2f}"
    return Text(
        f"With gamma compensated, w_b's first gradient over that from w_b = 1 (R'/R by the "
        f"formula, measured at step {steps}) is {en}; w_m's is {span}.",
        f"补偿 γ 时，w_b 的首步梯度与 w_b = 1 时之比（括号内：按公式 R'/R 之比，第 {steps} "
        f"步的实测值）：{zh}；w_m 的比值为 {span}。",
    )


def show(records: list[GradientRecord]) -> None:
    """Print the table of the first step, and the answer."""
    table = Table(title="first step: gradient over that at w_b = 1")
    for name in ("w_b", "gamma", "R'/R", *PARAMETERS):
        table.add_column(name, justify="right")
    for (w_b, compensated), values in ratios(records).items():
        kind = "compensated" if compensated else "as it is"
        cells = [f"{values[name]:.3f}" for name in PARAMETERS]
        table.add_row(f"{w_b:g}", kind, f"{factor(w_b):.3f}", *cells)
    console = terminal()
    if table.rows:
        console.print(table)
    console.print(f"gradients: {gradients_answer(records).en}", soft_wrap=True)
