"""The table of README's first screen, from the records: ``python -m tools.results_table``.

Writes it between two marks in both languages' README, and below the interactive page::

    <!-- results -->
    <!-- /results -->
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rbnorm_lab.catalogue.domains import BN, CENTRING, RBN
from rbnorm_lab.domains.testing import TEST_BATCH
from rbnorm_lab.shift import TRAINED
from rbnorm_lab.studies.results import CLEAN, SHIFTED, TARGET, Results, estimate_of
from rbnorm_lab.studies.variants import MATCHED
from rbnorm_lab.text import Text, with_margin
from tools.costs import norms_of, ratios
from tools.marks import put
from tools.sources import CIFAR, ROOT, STUDIES, domain_results, results_of

NAME: Final = "results"
PAGES: Final = {
    "en": (ROOT / "README.md", ROOT / "docs" / "touch.md"),
    "zh": (ROOT / "README.zh-CN.md", ROOT / "docs" / "zh" / "touch.md"),
}
NONE: Final = "–"
HEAD: Final = (
    Text("", ""),
    Text("clean images, %", "干净图像，%"),
    Text("corrupted, %", "退化图像，%"),
    Text("new domain, %", "新的域，%"),
    Text("time of a training step / inference", "训练步 / 推理耗时"),
)


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        name: Its heading.
        arm: Its arm in the study of CIFAR-10.
        statistics: With which that is tested.
        domain: Its arm in the study of domains, and the statistics there.
        norm: Whose costs it has; None for that which needs batches of test images.
    """

    name: Text
    arm: str
    statistics: str = TRAINED
    domain: tuple[str, str] | None = None
    norm: str | None = None


ROWS: Final = (
    Row(Text("BN", "BN"), "bn", domain=(BN, TRAINED), norm="batchnorm"),
    Row(
        Text("BN, statistics of 64 test images", "BN，64 张测试图像的统计量"),
        "bn",
        "test-batch-64",
        domain=(BN, TEST_BATCH[64]),
    ),
    Row(Text("BN, statistics of 8 test images", "BN，8 张测试图像的统计量"), "bn", "test-batch-8"),
    Row(
        Text("BN, mean and contrast set", "BN，图像均值与对比度已统一"),
        f"bn{MATCHED}",
        norm="batchnorm",
    ),
    Row(Text("RBN", "RBN"), "rbn", domain=(RBN, TRAINED), norm="rbn"),
    Row(
        Text("RBN, statistics of 64 test images", "RBN，64 张测试图像的统计量"),
        "rbn",
        "test-batch-64",
    ),
    Row(
        Text("RBN, statistics of 8 test images", "RBN，8 张测试图像的统计量"),
        "rbn",
        "test-batch-8",
    ),
    Row(
        Text("RBN, mean and contrast set", "RBN，图像均值与对比度已统一"),
        f"rbn{MATCHED}",
        norm="rbn",
    ),
    Row(
        Text("RBN, centring only", "RBN，仅中心化"),
        "centring only",
        domain=(CENTRING, TRAINED),
        norm="rbn-center",
    ),
    Row(
        Text("RBN, $w_m$ from −0.9 in the first layer", "RBN，首层 $w_m$ 从 −0.9 开始"),
        "rbn, w_m begins at −0.9 in the first layer",
        norm="rbn",
    ),
    Row(Text("GN", "GN"), "gn", norm="gn"),
)
NEEDS_BATCHES: Final = Text("needs batches of test images", "测试时需要成批图像")


def table(results: Path) -> dict[str, str]:
    """The table by language.

    Args:
        results: Folder of the sources' folders.
    """
    cifar = results_of(results / CIFAR.folder, CIFAR)["cifar"]
    of_domains = domain_results(results / STUDIES.folder)
    norms = norms_of(results / STUDIES.folder)
    rows = [
        (
            row.name,
            *(_accuracy(cifar, m, row.arm, row.statistics) for m in (CLEAN, SHIFTED)),
            NONE if row.domain is None else _accuracy(of_domains, TARGET, *row.domain, digits=1),
            NEEDS_BATCHES if row.norm is None else ratios(norms, row.norm),
        )
        for row in ROWS
    ]
    return {language: markdown(HEAD, rows, language) for language in PAGES}


def markdown(head: Sequence[Text], rows: Iterable[Sequence[str | Text]], language: str) -> str:
    """A table in Markdown; names and numbers are the same in every language."""

    def say(cell: str | Text) -> str:
        return cell if isinstance(cell, str) else str(getattr(cell, language))

    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(say, line))} |" for line in lines)


def _accuracy(results: Results, measure: str, arm: str, statistics: str, digits: int = 2) -> str:
    return with_margin(estimate_of(results.of(arm), measure, statistics), digits)


def write(results: Path, pages: Mapping[str, Sequence[Path]]) -> None:
    """Put the table between the marks of every language's pages.

    Raises:
        ValueError: One has no marks. It and those after it are as they were.
    """
    for language, drawn in table(results).items():
        for page in pages[language]:
            put(page, NAME, f"\n\n{drawn}\n\n")


if __name__ == "__main__":
    write(ROOT / "results", PAGES)
