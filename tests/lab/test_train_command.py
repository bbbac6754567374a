"""The command ``rbnorm train``: in two processes, killed, continued, and misused."""

import json
import shutil
import subprocess
import sys
import time

import psutil
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from support import environment, execute
from torch.nn.functional import cross_entropy

from rbnorm_cli.main import main
from rbnorm_lab.checkpoints import load_model
from rbnorm_lab.data import first_images, load_data
from rbnorm_lab.store import Store
from rbnorm_lab.training import checkpoint

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
STEPS = 16  # four epochs of four
OPTIONS = ("--model=cifar-resnet8", "--image-size=16", "--batch-size=16", "--accumulate=2")
RECIPE = ("--epochs=4", "--lr=1.6", "--decay-every=3")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Photographed digits as PNG: three classes, 24 images each for training and 9 held out."""
    root = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    for label in range(3):
        chosen = images[labels == label].reshape(-1, 8, 8).astype("uint8")
        for i, image in enumerate(chosen[:33]):
            folder = root / ("train" if i < 24 else "val") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image * 15).resize((20, 20)).save(folder / f"{i}.png")
    return root


def arguments(digits, out, *more):
    return ["train", f"--data=imagefolder:{digits}", *OPTIONS, *RECIPE, f"--out={out}", *more]


def in_two(*given):
    return [*TORCHRUN, "-m", "rbnorm", *given]


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A run of two processes that nothing interrupts, each with another that loads images."""
    folder = tmp_path_factory.mktemp("whole")
    done = execute(in_two(*arguments(digits, "out", "--workers=1")), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def facts(out):
    return json.loads((checkpoint.newest(out) / checkpoint.RUN).read_text())


def states(out):
    path = checkpoint.newest(out)
    weights = load_file(path / checkpoint.MODEL)
    return [weights, torch.load(path / "optimizer.bin", weights_only=True)["state"]]


def test_two_processes_train(whole):
    out, done = whole
    lines = done.stdout.strip().splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == [f"epoch {i}/4" for i in range(1, 5)]
    assert lines[-1] == f"Checkpoint: out/step-{STEPS:010d}"
    kept = [f"step-{step:010d}" for step in (STEPS - 4, STEPS)]
    others = [".lock", "records.jsonl", "records.jsonl.lock"]
    assert sorted(path.name for path in out.iterdir()) == [*others, *kept]
    history = facts(out)["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    right = history[-1]["test_accuracy"] * 27  # each of the images counts once
    assert right == pytest.approx(round(right), abs=1e-9)


def test_a_run_with_checkpoints_makes_a_record(whole):
    (record,) = Store(whole[0]).records.values()
    history = facts(whole[0])["history"]
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert [getattr(epoch, name) for epoch in record.epochs] == [m[name] for m in history]
    assert (record.config.processes, record.config.recipe) == (2, "steps")


def test_a_killed_run_continues_to_the_same_bits(digits, whole, tmp_path):
    begin = in_two(*arguments(digits, "out", "--workers=2"))
    victim = subprocess.Popen(
        begin,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    family = []
    try:
        deadline = time.monotonic() + 500
        while step(tmp_path / "out") < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        family = [*psutil.Process(victim.pid).children(recursive=True), victim]
        for process in family:
            process.kill()
        victim.wait()
    assert 4 <= step(tmp_path / "out") < STEPS
    done = execute(in_two(*arguments(digits, "out", "--workers=0")), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    actual, expected = facts(tmp_path / "out"), facts(whole[0])
    assert (actual["step"], actual["history"]) == (expected["step"], expected["history"])
    torch.testing.assert_close(states(tmp_path / "out"), states(whole[0]), rtol=0, atol=0)


def step(out):
    path = checkpoint.newest(out)
    return int(path.name.removeprefix("step-")) if path else 0


def test_the_weights_are_a_trained_model_in_a_file(digits, whole):
    """One process evaluates what two have trained as they did."""
    path = checkpoint.newest(whole[0])
    model = load_model(str(path / checkpoint.MODEL), None, classes=0, channels=0)
    data = load_data(f"imagefolder:{digits}", image_size=16)
    images, labels = first_images(data.test, 27)
    scores = model.eval()(images)
    metrics = facts(whole[0])["history"][-1]
    assert metrics["test_accuracy"] == (scores.argmax(1) == labels).double().mean().item()
    loss = cross_entropy(scores, labels).item()
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_another_number_of_processes_is_refused(digits, whole, capsys):
    assert main(arguments(digits, whole[0], "--workers=0")) == 2
    assert "holds a run with processes 2, not 1" in capsys.readouterr().err


def test_a_folder_has_one_writer(tmp_path, capsys):
    """What is said is that, not that a checkpoint which another run may be writing is broken."""
    (tmp_path / "step-0000000001").mkdir()
    (tmp_path / "step-0000000001" / checkpoint.RUN).write_bytes(b"half")
    with FileLock(tmp_path / ".lock"):
        given = ["--data=digits", "--model=cifar-resnet8", "--limit=64", "--batch-size=64"]
        assert main(["train", *given, "--workers=0", f"--out={tmp_path}"]) == 2
    assert "another process is training in" in capsys.readouterr().err


def test_an_image_that_breaks_in_a_worker_is_named(digits, tmp_path):
    broken = tmp_path / "images"
    shutil.copytree(digits, broken)
    for path in sorted((broken / "train" / "2").iterdir()):
        path.write_bytes(b"\x89PNG broken")
    given = arguments(broken, tmp_path / "out", "--workers=1")
    # in a process of its own: with workers torch handles SIGCHLD from then on, on a signal stack
    # that other libraries in this process have made too small
    done = execute([sys.executable, "-m", "rbnorm", *given], cwd=tmp_path)
    assert done.returncode == 2
    assert ".png is no readable image" in done.stderr
    assert done.stderr.strip().count("\n") == 0  # a bar that had not begun leaves a line
