"""Checkpoints on disk: whole or not there, and broken or foreign ones refused."""

import resource
from dataclasses import replace

import pytest
import torch

from rbnorm.lab.errors import UsageError
from rbnorm.lab.training import checkpoint
from rbnorm.lab.training.checkpoint import Checkpoint

IDENTITY = {"model": "m", "ema": 0.9, "processes": 1}


def make(step):
    weights = {"weight": torch.arange(4096.0), "count": torch.tensor(step)}
    return Checkpoint(
        identity=IDENTITY,
        step=step,
        model=weights,
        ema={name: value + 1 for name, value in weights.items()},
        optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        scheduler={"last_epoch": 3},
        scaler=None,
        totals=[1.5, 2.0, 3.0],
        history=[{"epoch": 1, "test_loss": 1 / 3}],
        seconds=[2.5],
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_read(tmp_path):
    checkpoint.save(tmp_path, make(7))
    found = checkpoint.read(checkpoint.newest(tmp_path), IDENTITY)
    expected = make(7)
    for part in ("model", "ema"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=0, atol=0)
    assert torch.equal(found.optimizer["state"][0]["momentum_buffer"], torch.ones(3))
    assert (found.step, found.totals, found.history) == (7, expected.totals, expected.history)


def test_without_an_average_there_is_no_file_of_it(tmp_path):
    identity = {**IDENTITY, "ema": None}
    checkpoint.save(tmp_path, replace(make(7), ema=None, identity=identity))
    assert names(checkpoint.newest(tmp_path)) == ["history.json", "model.safetensors", "state.pt"]
    assert checkpoint.read(checkpoint.newest(tmp_path), identity).ema is None


def test_the_last_two_are_kept(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    for step in (1, 9, 10, 11):
        checkpoint.save(tmp_path, make(step))
    assert names(tmp_path) == ["step-0000000010", "step-0000000011"]
    assert checkpoint.newest(tmp_path).name == "step-0000000011"


def test_what_a_kill_left_of_a_checkpoint_is_no_checkpoint(tmp_path):
    checkpoint.save(tmp_path, make(1))
    torn = tmp_path / ".step-abc" / "whole"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"torn")
    assert checkpoint.newest(tmp_path).name == "step-0000000001"
    checkpoint.clear(tmp_path)
    assert names(tmp_path) == ["step-0000000001"]


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path):
    checkpoint.save(tmp_path, make(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # less than the weights
    try:
        with pytest.raises(UsageError, match=r"step-0000000002 cannot be written \(File too large"):
            checkpoint.save(tmp_path, make(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-0000000001"]
    assert checkpoint.read(checkpoint.newest(tmp_path), IDENTITY).step == 1


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "state.pt", "history.json"]
)
@pytest.mark.parametrize("left", [0, 0.5, None])
def test_a_broken_or_missing_file_is_named(tmp_path, name, left):
    checkpoint.save(tmp_path, make(1))
    path = checkpoint.newest(tmp_path) / name
    content = path.read_bytes()
    path.unlink() if left is None else path.write_bytes(content[: int(left * len(content))])
    with pytest.raises(UsageError, match=name):
        checkpoint.read(path.parent, IDENTITY)


def test_another_run_is_refused(tmp_path):
    checkpoint.save(tmp_path, make(1))
    with pytest.raises(UsageError, match="holds a run with processes 1, not 2"):
        checkpoint.read(checkpoint.newest(tmp_path), {**IDENTITY, "processes": 2})


def test_another_version_is_refused(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, make(1))
    monkeypatch.setattr(checkpoint, "SCHEMA", checkpoint.SCHEMA + 1)
    with pytest.raises(UsageError, match="is of another version of rbnorm"):
        checkpoint.read(checkpoint.newest(tmp_path), IDENTITY)
