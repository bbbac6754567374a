"""Data-parallel training by several processes against one process with all the data."""

from typing import Any

import parallel
import pytest
import ranks
import torch

import rbnorm


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return ranks.on_ranks(parallel.everything)


@pytest.mark.parametrize(
    ("way", "one", "tolerance"),
    [
        ("ddp", "one", 1e-12),
        ("fsdp", "one", 1e-12),
        ("fsdp bfloat16", "one bfloat16", 1e-2),  # sums of other parts, rounded to 2**-9
        ("ddp frozen", "one frozen", 1e-12),
    ],
)
def test_training_equals_one_process(found: Any, way: str, one: str, tolerance: float) -> None:
    """Parameters and running statistics after several steps of two forward passes each."""
    for part in found:
        assert part[way].keys() == part[one].keys()
        for name, expected in part[one].items():
            torch.testing.assert_close(
                part[way][name], expected, rtol=tolerance, atol=tolerance, msg=f"{way}: {name}"
            )


def test_bfloat16_training_is_near_the_exact_one(found: Any) -> None:
    exact, rounded = found[0]["one"], found[0]["fsdp bfloat16"]
    for name, expected in exact.items():
        assert rounded[name].dtype in {torch.float32, torch.int64}
        torch.testing.assert_close(rounded[name].double(), expected.double(), rtol=0.1, atol=0.1)


def test_training_has_changed_everything(found: Any) -> None:
    """Otherwise equality would say nothing."""
    start = parallel.plain(parallel.net())
    for name, value in found[0]["ddp"].items():
        assert not torch.allclose(value, start[name], rtol=1e-5, atol=1e-5), name


def test_frozen_statistics_stay(found: Any) -> None:
    start = parallel.plain(parallel.net())
    assert torch.equal(found[0]["ddp frozen"]["1.running_var"], start["1.running_var"])
    assert not torch.equal(found[0]["ddp frozen"]["1.center_weight"], start["1.center_weight"])


def test_collectives_are_those_of_sync_batchnorm(found: Any) -> None:
    """2 C + 1 numbers gathered and 2 C summed per step; none in evaluation, frozen or alone."""
    for part in found:
        assert part["group of one"] is None
        assert part["collectives"] == [("all_gather_into_tensor", 11), ("all_reduce", 10)]


@pytest.mark.parametrize(("reduce", "mean", "var"), [(True, 0.5, 3.5), (False, 0.0, 3.0)])
def test_timm_distributes_statistics(found: Any, reduce: bool, mean: float, var: float) -> None:
    """timm's ``distribute_bn`` averages them, or sends those of the first process."""
    for part in found:
        assert part["distributed"][reduce]["0.running_mean"].tolist() == [mean] * 2
        assert part["distributed"][reduce]["0.running_var"].tolist() == [var] * 2


def test_only_the_group_shares_a_batch() -> None:
    """Processes 0 and 2 are one group, where 2 is the second, and 1 is alone."""
    members = ((0, 2), (1,))
    parts = ranks.on_ranks(parallel.in_groups, members, world=3)
    for group in members:
        x = parallel.batch(*group)
        layer = rbnorm.RepresentativeBatchNorm1d(4, dtype=torch.float64)
        y = layer(x)
        y.square().sum().backward()
        own = [parts[rank] for rank in group]
        expected = {"y": y.detach(), "x": x.grad}
        for name, value in expected.items():
            actual = torch.cat([part[name] for part in own])
            torch.testing.assert_close(actual, value, rtol=1e-12, atol=1e-12)
        for part in own:
            torch.testing.assert_close(part["mean"], layer.running_mean, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(part["var"], layer.running_var, rtol=1e-12, atol=1e-12)
