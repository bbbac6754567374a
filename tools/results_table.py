"""The table of the README's first screen, from the records: ``python -m tools.results_table``.

Writes it between two marks in both languages' README::

    <!-- results -->
    <!-- /results -->
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Final

from rbnorm_cli.parser import make_parser
from rbnorm_lab.catalogue.domains import BN, CENTRING, RBN
from rbnorm_lab.domains.settings import completed, settings_of
from rbnorm_lab.domains.testing import TEST_BATCH
from rbnorm_lab.records import Record
from rbnorm_lab.shift import CLEAN, TRAINED, mean_corruption_accuracy
from rbnorm_lab.shift import TEST_BATCH as OF_TEST_BATCH
from rbnorm_lab.statistics import estimate
from rbnorm_lab.store import Store
from rbnorm_lab.studies.command import Plans
from rbnorm_lab.studies.costs import Costs, load_costs
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.results import TARGET, Results, collect, estimate_of
from rbnorm_lab.studies.study import Settings
from rbnorm_lab.text import Text, with_margin
from tools.marks import put

NAME: Final = "results"
ROOT: Final = Path(__file__).parents[1]
READMES: Final = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
NONE: Final = "–"
SMALL: Final = 2
HEAD: Final = (
    Text("", ""),
    Text("clean images, %", "干净图像，%"),
    Text("corrupted, %", "退化图像，%"),
    Text("new domain, %", "新的域，%"),
    Text(f"{SMALL} images normalised together, %", f"每 {SMALL} 张图像一起归一化，%"),
    Text("time of a training step / inference", "训练步 / 推理耗时"),
)
ROWS: Final = (
    ("bn", TRAINED, BN, Text("BN", "BN")),
    ("rbn", TRAINED, RBN, Text("RBN", "RBN")),
    ("rbn-center", TRAINED, CENTRING, Text("RBN, centring only", "RBN，仅中心化")),
    ("gn", TRAINED, None, Text("GN", "GN")),
    ("bn", OF_TEST_BATCH, BN, Text("BN + test-time statistics", "BN + 测试批统计量")),
)
NEEDS_BATCHES: Final = Text("needs batches of test images", "测试时需要成批图像")


def table(results: Path) -> dict[str, str]:
    """The table by language.

    Args:
        results: Folder of the studies' records.
    """
    settings = Settings.of(vars(make_parser("").parse_args(["study", "primary"])))
    store = Store(results)
    every, rate = store.records, Rates(settings, store)
    of_domains = domain_results(results)
    costs = load_costs(results)
    rows = []
    for norm, statistics, arm, name in ROWS:
        whole, small = (
            _runs(every, settings, norm, rate(settings.run.model, norm), size)
            for size in (None, SMALL)
        )
        as_trained = statistics == TRAINED
        clean = _over_seeds(
            whole, lambda r, s=statistics: r.accuracy if s == TRAINED else _shifted(r, s, CLEAN)
        )
        rows.append(
            (
                name,
                clean,
                _over_seeds(whole, lambda r, s=statistics: _shifted(r, s, None)),
                _domain(of_domains, arm, as_trained),
                (clean if norm == "gn" else _over_seeds(small, lambda r: r.accuracy))
                if as_trained
                else NONE,
                _cost(costs, norm) if as_trained else NEEDS_BATCHES,
            )
        )
    return {language: _drawn(rows, language) for language in READMES}


def domain_results(results: Path) -> Results:
    """What the records of the study of domains show."""
    options = vars(make_parser("").parse_args(["study domains"]))
    store = Store(results)
    plans = Plans(["domains"], completed(settings_of(options), None, store), store)
    return collect(plans.studies()[0], store)


def _runs(
    records: Mapping[str, Record], settings: Settings, norm: str, lr: float, size: int | None
) -> list[Record]:
    """The runs of a norm with its own rate, as the studies make them."""
    shared = replace_fields(settings.run, norm=norm, lr=lr, norm_batch=size, shift="none")
    return [
        record
        for record in records.values()
        if replace_fields(record.config, seed=shared.seed, shift="none") == shared
    ]


def _drawn(rows: list[tuple[Text | str, ...]], language: str) -> str:
    def say(cell: Text | str) -> str:
        return cell if isinstance(cell, str) else str(getattr(cell, language))

    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "\n".join("| " + " | ".join(map(say, line)) + " |" for line in lines)


def _over_seeds(records: list[Record], value: Callable[[Record], float | None]) -> str:
    values = [v for r in records if (v := value(r)) is not None]
    return with_margin(estimate(values)) if values else NONE


def _shifted(record: Record, statistics: str, condition: str | None) -> float | None:
    accuracies = record.shifted.get(statistics)
    if accuracies is None:
        return None
    return mean_corruption_accuracy(accuracies) if condition is None else accuracies[condition]


def _domain(results: Results, arm: str | None, as_trained: bool) -> str:
    if arm is None:
        return NONE
    return with_margin(
        estimate_of(results.of(arm), TARGET, TRAINED if as_trained else TEST_BATCH[64]), 1
    )


def _cost(costs: Costs | None, norm: str) -> str:
    if costs is None:
        return NONE
    ratios = costs.of("batchnorm" if norm == "bn" else norm).ratios
    return " / ".join(f"{ratios[name].value:.2f}" for name in ("step", "inference"))


def write(results: Path, readmes: Mapping[str, Path]) -> None:
    """Put the table between the marks of every README.

    Raises:
        ValueError: One has no marks. It and those after it are as they were.
    """
    for language, drawn in table(results).items():
        put(readmes[language], NAME, f"\n\n{drawn}\n\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "studies")
    write(parser.parse_args().results, READMES)
