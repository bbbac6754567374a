"""The committed records: where they are, which command made them, and what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from rbnorm_cli.parser import make_parser
from rbnorm_lab.domains.settings import completed, settings_of
from rbnorm_lab.names import study_names
from rbnorm_lab.store import Store
from rbnorm_lab.studies.command import Plans
from rbnorm_lab.studies.results import Results, collect
from rbnorm_lab.studies.study import Settings

ROOT: Final = Path(__file__).parents[1]


class Source(NamedTuple):
    """A folder of committed records, with the command that made them."""

    folder: str
    command: tuple[str, ...]


STUDIES: Final = Source("studies", ("study", "all"))
CIFAR: Final = Source(
    "cifar",
    (
        *("study", "cifar", "--data", "cifar10-jpeg", "--model", "cifar-resnet20"),
        *("--batch-size", "128", "--epochs", "10", "--limit", "50000", "--seeds", "5"),
        *("--rates", "0.1", "0.2", "0.4", "--tuning-seeds", "1", "--tuning-epochs", "10"),
        *("--trace", "--mixed-precision", "bf16"),
    ),
)
CIFAR10: Final = Source(
    "cifar10",
    (
        *("study", "batch-size", "init", "fine-tune", "networks", "--data", "cifar10-jpeg"),
        *("--seeds", "5", "--clean-only", "--trace", "--limit", "10000", "--test-limit", "2000"),
        *("--epochs", "1", "--rates", "0.05", "0.2", "--tuning-seeds", "1"),
        *("--networks", "small:timm:mobilenetv3_small_050", "small:timm:regnetx_002"),
    ),
)
CAMVID: Final = Source(
    "camvid",
    (
        *("study", "segmentation", "--data", "camvid", "--model", "lraspp-mobilenet-v2"),
        *("--image-size", "72", "--batch-size", "8", "--epochs", "3", "--seeds", "5"),
        *("--rates", "0.004", "0.02", "0.1", "--tuning-seeds", "1"),
    ),
)
TABLED: Final = (STUDIES, CIFAR, CAMVID)
SOURCES: Final = (*TABLED, CIFAR10)
"""Of the last, the page has a line each."""


def results_of(folder: Path, source: Source) -> dict[str, Results]:
    """What the records of a source show, by study."""
    options = make_parser("").parse_args(source.command)
    plans = Plans(study_names(options.names), Settings.of(vars(options)), Store(folder))
    return {study.name: collect(study, plans.store) for study in plans.studies()}


def domain_results(results: Path) -> Results:
    """What the records of the study of domains show."""
    options = vars(make_parser("").parse_args(["study domains", "--epochs", "1"]))
    store = Store(results)
    plans = Plans(["domains"], completed(settings_of(options), None, store), store)
    return collect(plans.studies()[0], store)
