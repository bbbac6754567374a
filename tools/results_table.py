"""The table of README's first screen, from the records: ``python -m tools.results_table``.

Writes it between two marks in both languages' README, and below the interactive page::

    <!-- results -->
    <!-- /results -->
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from rbnorm_cli.parser import make_parser
from rbnorm_lab.catalogue.domains import BN, CENTRING, RBN
from rbnorm_lab.config import WHOLE
from rbnorm_lab.domains.settings import completed, settings_of
from rbnorm_lab.domains.testing import TEST_BATCH
from rbnorm_lab.records import Record
from rbnorm_lab.shift import CLEAN, TRAINED, mean_corruption_accuracy
from rbnorm_lab.shift import TEST_BATCH as OF_TEST_BATCH
from rbnorm_lab.statistics import estimate
from rbnorm_lab.store import Store
from rbnorm_lab.studies.command import Plans
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.results import TARGET, Results, collect, estimate_of
from rbnorm_lab.studies.study import Settings
from rbnorm_lab.text import Text, with_margin
from tools.costs import norms_of, ratios
from tools.marks import put

NAME: Final = "results"
ROOT: Final = Path(__file__).parents[1]
PAGES: Final = {
    "en": (ROOT / "README.md", ROOT / "docs" / "touch.md"),
    "zh": (ROOT / "README.zh-CN.md", ROOT / "docs" / "zh" / "touch.md"),
}
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


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        name: Its heading.
        norm: The norm, at the learning rate of ``rate_of``.
        rate_of: A norm.
        statistics: With which it is tested.
        arm: Its arm in the study of domains.
        matched: On images whose own mean and contrast are set.
    """

    name: Text
    norm: str
    rate_of: str
    statistics: str = TRAINED
    arm: str | None = None
    matched: bool = False


ROWS: Final = (
    Row(Text("BN", "BN"), "bn", "bn", arm=BN),
    Row(Text("BN at RBN's learning rate", "BN，用 RBN 的学习率"), "bn", "rbn"),
    Row(Text("BN, mean and contrast set", "BN，图像均值与对比度已统一"), "bn", "bn", matched=True),
    Row(Text("RBN", "RBN"), "rbn", "rbn", arm=RBN),
    Row(Text("RBN, centring only", "RBN，仅中心化"), "rbn-center", "rbn-center", arm=CENTRING),
    Row(Text("RBN, scaling only", "RBN，仅缩放"), "rbn-scale", "rbn-scale"),
    Row(Text("GN", "GN"), "gn", "gn"),
    Row(Text("BN + test-time statistics", "BN + 测试批统计量"), "bn", "bn", OF_TEST_BATCH, BN),
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
    norms = norms_of(results)
    rows = []
    for row in ROWS:
        lr = rate(settings.run.model, row.rate_of)
        whole, small = (
            _runs(every, settings, norm=row.norm, lr=lr, norm_batch=size, match_moments=row.matched)
            for size in (None, SMALL)
        )
        as_trained = row.statistics == TRAINED
        candidate = "batchnorm" if row.norm == "bn" else row.norm
        together = whole if row.norm == "gn" else small  # no part changes what GroupNorm computes
        rows.append(
            (
                row.name,
                *(_over_seeds(accuracies(whole, row.statistics, c)) for c in (CLEAN, None)),
                _domain(of_domains, row.arm, as_trained),
                _over_seeds([r.accuracy for r in together]) if as_trained else NONE,
                NONE if row.matched else ratios(norms, candidate) if as_trained else NEEDS_BATCHES,
            )
        )
    return {language: markdown(HEAD, rows, language) for language in PAGES}


def domain_results(results: Path) -> Results:
    """What the records of the study of domains show."""
    options = vars(make_parser("").parse_args(["study domains", "--epochs", "1"]))
    store = Store(results)
    plans = Plans(["domains"], completed(settings_of(options), None, store), store)
    return collect(plans.studies()[0], store)


def _runs(records: Mapping[str, Record], settings: Settings, **own: Any) -> list[Record]:
    """The runs of such a config, as the studies make them."""
    shared = replace_fields(settings.run, shift="none", **own)
    return [
        record
        for record in records.values()
        if replace_fields(record.config, seed=shared.seed, shift="none") == shared
    ]


def markdown(head: Sequence[Text], rows: Iterable[Sequence[str | Text]], language: str) -> str:
    """A table in Markdown; names and numbers are the same in every language."""

    def say(cell: str | Text) -> str:
        return cell if isinstance(cell, str) else str(getattr(cell, language))

    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(say, line))} |" for line in lines)


def _over_seeds(values: list[float]) -> str:
    return with_margin(estimate(values)) if values else NONE


def accuracies(records: list[Record], statistics: str, condition: str | None) -> list[float]:
    """The accuracies on the first test images, which all rows of a column have in common.

    Args:
        records: Runs; those that were not tested so are left out.
        statistics: With which.
        condition: ``"clean"``, or None for the mean over the corruptions.

    Raises:
        ValueError: Some were tested on all images.
    """
    found = [record for record in records if statistics in record.shifted]
    if any(record.config.shift in WHOLE for record in found):
        raise ValueError("the rows of a column must be of the same images, and some are of all")
    each = [record.shifted[statistics] for record in found]
    return [mean_corruption_accuracy(a) if condition is None else a[condition] for a in each]


def _domain(results: Results, arm: str | None, as_trained: bool) -> str:
    if arm is None:
        return NONE
    return with_margin(
        estimate_of(results.of(arm), TARGET, TRAINED if as_trained else TEST_BATCH[64]), 1
    )


def write(results: Path, pages: Mapping[str, Sequence[Path]]) -> None:
    """Put the table between the marks of every language's pages.

    Raises:
        ValueError: One has no marks. It and those after it are as they were.
    """
    for language, drawn in table(results).items():
        for page in pages[language]:
            put(page, NAME, f"\n\n{drawn}\n\n")


if __name__ == "__main__":
    write(ROOT / "results" / "studies", PAGES)
