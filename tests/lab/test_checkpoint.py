"""Checkpoints on disk: whole or not there, and broken or foreign ones refused."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import execute

from rbnorm_lab.errors import UsageError
from rbnorm_lab.training import checkpoint
from rbnorm_lab.training.checkpoint import Checkpoint

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


OWN = ("step-0000000009-best", "step-best", "step-9", "step-00000000009")


@pytest.mark.parametrize("name", OWN)
def test_a_copy_of_the_user_is_no_checkpoint_and_stays(tmp_path, name):
    checkpoint.save(tmp_path, make(9))
    shutil.copytree(checkpoint.newest(tmp_path), tmp_path / name)
    for step in (10, 11, 12):
        checkpoint.save(tmp_path, make(step))
    assert checkpoint.newest(tmp_path).name == "step-0000000012"
    assert names(tmp_path) == sorted([name, "step-0000000011", "step-0000000012"])


def test_a_checkpoint_in_which_the_user_keeps_something_is_not_removed(tmp_path):
    checkpoint.save(tmp_path, make(9))
    (checkpoint.newest(tmp_path) / "notes.txt").write_text("the best")
    for step in (10, 11, 12):
        checkpoint.save(tmp_path, make(step))
    assert names(tmp_path) == [f"step-{step:010d}" for step in (9, 11, 12)]


def test_a_hidden_folder_of_the_user_stays(tmp_path):
    (tmp_path / ".rbnorm-step-notes").mkdir()
    (tmp_path / ".rbnorm-step-notes" / "notes.txt").touch()
    checkpoint.clear(tmp_path)
    assert names(tmp_path) == [".rbnorm-step-notes"]


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_none_of_it_visible(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    remove = shutil.rmtree

    def killed(folder, **options):
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        if not files:
            return remove(folder, **options)
        files[0].unlink()
        raise Killed

    for step in (1, 2):
        checkpoint.save(tmp_path, make(step))
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        checkpoint.save(tmp_path, make(3))
    monkeypatch.undo()
    visible = [name for name in names(tmp_path) if not name.startswith(".")]
    assert visible == ["step-0000000002", "step-0000000003"]
    checkpoint.clear(tmp_path)
    assert names(tmp_path) == visible


def test_what_a_kill_left_of_a_checkpoint_is_no_checkpoint(tmp_path):
    checkpoint.save(tmp_path, make(1))
    torn = tmp_path / ".rbnorm-step-abc" / "whole"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"torn")
    assert checkpoint.newest(tmp_path).name == "step-0000000001"
    checkpoint.clear(tmp_path)
    assert names(tmp_path) == ["step-0000000001"]


# In a process of its own: the limit holds for whatever else this one writes, too.
FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_checkpoint import checkpoint, make
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))  # less than the weights
try:
    checkpoint.save(Path(sys.argv[2]), make(2))
except checkpoint.UsageError as error:
    print(error)
"""


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path):
    checkpoint.save(tmp_path, make(1))
    tests = Path(__file__).parent
    done = execute([sys.executable, "-c", FULL_DISK, tests, tmp_path], tests.parent.parent)
    assert done.returncode == 0, done.stderr
    assert "step-0000000002 cannot be written (File too large" in done.stdout
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
