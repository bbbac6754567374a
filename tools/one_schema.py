"""Rewrites the records of domains and gradients to the one schema: python -m tools.one_schema."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec

from rbnorm_cli.parser import make_parser
from rbnorm_lab.config import RunConfig
from rbnorm_lab.domains.settings import completed
from rbnorm_lab.domains.testing import RE_ESTIMATED
from rbnorm_lab.records import Epoch, Record
from rbnorm_lab.store import Store
from rbnorm_lab.studies.command import Plans
from rbnorm_lab.studies.study import Settings

EXPECTED: set[str] = set()
RESULTS = Path(__file__).parents[1] / "results" / "studies"


def lines(name: str) -> list[dict]:
    """The objects of a file."""
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def domain(old: dict) -> Record:
    """The record of a fine-tuning."""
    run, target = old["config"], old["target"]
    names = ("model", "norm", "batch_size", "seed", "epochs", "lr", "weight_decay", "image_size")
    config = RunConfig(
        data=run["images"],
        **{name: run[name] for name in (*names, "frozen", "target", "calibration_rate")},
        held_out=run["tuning"],
        trace=False,
        shift="none" if run["tuning"] else "trained",
    )
    if not run["tuning"] and replace(config, shift="controls").key in EXPECTED:
        config = replace(config, shift="controls")
    statistics = {RE_ESTIMATED if name == "re-estimated" else name: v for name, v in target.items()}
    return Record(
        config=config,
        epochs=(Epoch(old["train_loss"], None, None, old["source"], old["seconds"]["training"]),),
        channel_mean_std={},
        calibration=old["calibration"],
        shifted={name: {run["target"]: value} for name, value in statistics.items()},
        diverged=old["train_loss"] is None,
        device=old["device"],
        seconds=sum(old["seconds"].values()),
        environment=old["environment"],
        created=old["created"],
        facts={**old["digests"], "backend": old["backend"], "layout": old["layout"]},
    )


def gradient(old: dict) -> Record:
    """The record of a few steps."""
    steps = len(old["gradients"]["w_b"])
    return Record(
        config=msgspec.convert({**old["config"], "gradient_steps": steps}, RunConfig),
        epochs=(),
        channel_mean_std={},
        calibration={},
        shifted={},
        diverged=False,
        device="cpu",
        seconds=0.0,
        environment=old["environment"],
        created=old["created"],
        gradients=old["gradients"],
    )


if __name__ == "__main__":
    store = Store(RESULTS)
    runs = lines("domains.jsonl")
    for old in runs:
        if old["config"]["tuning"]:
            store.append(domain(old))
    options = vars(make_parser("").parse_args(["study domains"]))
    settings = Settings.of(options, data="pacs", trace=False)
    plans = Plans(["domains"], completed(settings, None, store), store)
    EXPECTED |= {run.key for run in plans.runs()}
    for old in runs:
        if not old["config"]["tuning"]:
            store.append(domain(old))
    for old in lines("gradients.jsonl"):
        store.append(gradient(old))
    for name in ("domains.jsonl", "gradients.jsonl"):
        (RESULTS / name).unlink()
