"""A type checker knows the names that options take, and they are those of the tables."""

import re
from pathlib import Path
from typing import get_args

import pytest
from mypy import api

from rbnorm.definition import STATISTICS, StatisticName
from rbnorm.elementwise import ACTIVATIONS, RESTRICTIONS, ActivationName, RestrictionName
from rbnorm.layers.options import Calibration, CalibrationOptions, LayerOptions

SOURCES = Path(__file__).resolve().parent.parent / "src"
# Of torch nothing is read, which would take a minute.
SETTINGS = f"""[mypy]
mypy_path = {SOURCES}
strict = True
disallow_subclassing_any = False
[mypy-torch.*]
follow_imports = skip
"""
BEFORE = """
import rbnorm
from rbnorm.functional import representative_batch_norm
from torch import Tensor, nn
def use(net: nn.Module, x: Tensor, name: str) -> None:
"""
ACCEPTED = (
    'rbnorm.RepresentativeBatchNorm2d(8, statistic="max", restrict="tanh")',
    "rbnorm.RepresentativeBatchNorm2d(8, statistic=lambda x: x.mean((2, 3), keepdim=True))",
    "rbnorm.LazyRepresentativeBatchNorm1d(center=False, bias=False)",
    "rbnorm.SyncRepresentativeBatchNorm(8, bias=False, scale_bias_init=2)",
    'rbnorm.convert_batchnorm(net, False, restrict="identity", where="layer4.*")',
    'representative_batch_norm(x, None, None, training=True, activation="silu")',
)
REFUSED = (
    'rbnorm.RepresentativeBatchNorm2d(8, statistic="median")',
    "rbnorm.RepresentativeBatchNorm3d(8, restrict=name)",
    'rbnorm.RepresentativeBatchNormAct2d(8, restrict="relu")',
    'rbnorm.LazyRepresentativeBatchNorm2d(statistic="median")',
    "rbnorm.SyncRepresentativeBatchNorm(8, centre=False)",
    'rbnorm.convert_batchnorm(net, statistic="median")',
    'representative_batch_norm(x, None, None, training=True, activation="softmax")',
)


@pytest.mark.parametrize(
    ("names", "table"),
    [(StatisticName, STATISTICS), (RestrictionName, RESTRICTIONS), (ActivationName, ACTIVATIONS)],
    ids=["statistics", "restrictions", "activations"],
)
def test_names_are_those_of_the_table(names: object, table: dict[str, object]) -> None:
    assert get_args(names) == tuple(table)


def test_options_are_those_of_the_layer() -> None:
    assert tuple(CalibrationOptions.__annotations__) == Calibration._fields
    assert set(LayerOptions.__annotations__) == {*Calibration._fields, "bias"}


def test_a_checker_finds_what_no_layer_takes(tmp_path: Path) -> None:
    before, calls = BEFORE.strip(), [*ACCEPTED, *REFUSED]
    (tmp_path / "used.py").write_text("\n    ".join([before, *calls]) + "\n")
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    said, failed, _ = api.run(
        [
            *("--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")),
            str(tmp_path / "used.py"),
        ]
    )
    assert not failed, failed
    first = before.count("\n") + 2
    lines = {int(n) for n in re.findall(r"used\.py:(\d+): error", said)}
    assert {calls[n - first] for n in lines} == set(REFUSED), said
