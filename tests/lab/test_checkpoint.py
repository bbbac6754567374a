"""Checkpoints on disk: whole or not there, and broken or foreign ones refused."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support import CONFIG, execute
from torch import nn
from torchvision.transforms import v2

from rbnorm_lab.checkpoints import read_saved
from rbnorm_lab.data import ImageData, Tensors
from rbnorm_lab.errors import UsageError
from rbnorm_lab.training import checkpoint
from rbnorm_lab.training.loop import Training

RUN = replace(CONFIG, batch_size=4)


def at(step, config=RUN):
    """A run of a small network that stands there."""
    images = Tensors(torch.randn(8, 1, 4, 4), torch.arange(8) % 2, v2.Identity())
    data = ImageData(images, images, images, 2, 1, (0.0,), (1.0,))
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 2))
    training = Training(network, config, data, Accelerator(cpu=True))
    training.step = step
    return training


def save(folder, *steps):
    for step in steps:
        checkpoint.save(at(step), folder)
    return checkpoint.newest(folder)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_has_the_model_as_a_trained_model_in_a_file(tmp_path):
    path = save(tmp_path, 7)
    own = [checkpoint.MODEL, "optimizer.bin", "random_states_0.pkl"]
    assert names(path) == [*own, checkpoint.RUN]
    assert read_saved(path / checkpoint.MODEL) == (RUN, 2, 1)
    assert json.loads((path / checkpoint.RUN).read_text())["step"] == 7


def test_the_last_two_are_kept(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert save(tmp_path, 1, 9, 10, 11).name == "step-0000000011"
    assert names(tmp_path) == ["step-0000000010", "step-0000000011"]


def test_what_the_user_keeps_is_no_checkpoint_and_stays(tmp_path):
    copies = ["step-0000000009-best", "step-best", "step-9", "step-00000000009"]
    own = save(tmp_path, 9)
    for name in copies:
        shutil.copytree(own, tmp_path / name)
    (own / "notes.txt").write_text("the best")
    assert save(tmp_path, 10, 11, 12).name == "step-0000000012"
    assert names(tmp_path) == sorted([*copies, *(f"step-{step:010d}" for step in (9, 11, 12))])


class Killed(BaseException):
    pass


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_none_of_it_visible(tmp_path, monkeypatch):
    def killed(folder, ignore_errors=False):
        if not ignore_errors:  # else what a process left that was killed before
            next(Path(folder).iterdir()).unlink()
            raise Killed

    save(tmp_path, 1, 2)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        save(tmp_path, 3)
    monkeypatch.undo()
    visible = [name for name in names(tmp_path) if not name.startswith(".")]
    assert visible == ["step-0000000002", "step-0000000003"]
    save(tmp_path, 4)
    assert names(tmp_path) == ["step-0000000003", "step-0000000004"]


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    def killed(*_):
        raise Killed

    save(tmp_path, 1)
    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(Killed):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path).name == "step-0000000001"
    assert save(tmp_path, 2).name == "step-0000000002"
    assert names(tmp_path) == ["step-0000000001", "step-0000000002"]


# In a process of its own: the limit holds for whatever else this one writes, too.
FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_checkpoint import checkpoint, save
for size in (500, 1400):  # less than the weights, and than the optimiser
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        save(Path(sys.argv[2]), 2)
    except checkpoint.UsageError as error:
        print(error)
"""


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path):
    save(tmp_path, 1)
    tests = Path(__file__).parent
    done = execute([sys.executable, "-c", FULL_DISK, tests, tmp_path], tests.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step-0000000002 cannot be written (") == 2
    training = at(0)
    checkpoint.load(training, checkpoint.newest(tmp_path))
    assert training.step == 1


@pytest.mark.parametrize("name", [checkpoint.MODEL, "optimizer.bin", "run.json"])
@pytest.mark.parametrize("left", [0, 0.5, None])
def test_a_checkpoint_with_a_broken_or_missing_file_is_named(tmp_path, name, left):
    path = save(tmp_path, 1)
    content = (path / name).read_bytes()
    (path / name).unlink()
    if left is not None:
        (path / name).write_bytes(content[: int(left * len(content))])
    with pytest.raises(UsageError, match=rf"{path} is broken .*: remove it to continue from the"):
        checkpoint.load(at(0), path)


def test_another_run_and_another_version_are_refused(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    with pytest.raises(UsageError, match="holds a run with seed 0, not 1"):
        checkpoint.load(at(0, replace(RUN, seed=1)), path)
    monkeypatch.setattr(checkpoint, "SCHEMA", checkpoint.SCHEMA + 1)
    with pytest.raises(UsageError, match="is of another version of rbnorm"):
        checkpoint.load(at(0), path)
