"""The whole command on digits: run, killed and continued, in shards, on Ray, and misused."""

import subprocess
import time
from statistics import fmean

import pytest
from support import called, command, environment, opened, run
from torchvision.datasets import FashionMNIST

from rbnorm_cli.main import main
from rbnorm_lab.names import study_names
from rbnorm_lab.store import Store
from rbnorm_lab.studies import command as module
from rbnorm_lab.studies.command import reproducing

TINY = (
    *("--data", "digits", "--limit", 64, "--epochs", 1, "--seeds", 2),
    *("--rates", 0.1, "--tuning-seeds", 1, "--test-limit", 100, "--out", "out"),
)


def results(folder):
    """What records say of their runs, without what a clock or another process would change."""
    return {
        key: (
            [(e.train_loss, e.test_accuracy) for e in record.epochs],
            record.shifted,
            record.calibration,
        )
        for key, record in Store(folder).records.items()
    }


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Every study, with the smallest network alone."""
    folder = tmp_path_factory.mktemp("studies")
    done = called("study", "all", *TINY, "--networks", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_every_study_ends_with_an_answer_and_a_page(everything):
    out, done = everything
    for name in study_names(["all"]):
        assert f"{name}: " in done.stdout
        assert f"Report: out/{name}/report.html" in done.stdout
        assert (out / name / "report.html").is_file()
    assert "Holm-adjusted p" in done.stdout
    assert not Store(out).failures


def test_the_same_command_again_repeats_what_it_said(everything):
    out, done = everything
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = called("study", "all", *TINY, "--networks", cwd=out.parent)
    assert again.stdout == "Nothing left to run: out has every run.\n" + done.stdout
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_study_without_its_data_is_refused(tmp_path, monkeypatch, capsys):
    def unreachable(*_):
        raise RuntimeError("no network")

    monkeypatch.setattr(FashionMNIST, "download", unreachable)
    monkeypatch.chdir(tmp_path)
    assert main(["study", "primary", "--data-root", "nowhere", "--out", "out"]) == 2
    assert "FashionMNIST is not in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["study fine-tune", "compare"])
def test_several_processes_for_each_run_are_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(module, "count_processes", lambda: 2)
    assert main([*name.split(), "--data", "digits", "--out", str(tmp_path / "out")]) == 2
    assert "each run is made by one process, not under torchrun" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_its_page_opens_with_the_numbers_of_the_records(everything, browser):
    out, _ = everything
    page = opened(browser, out / "primary" / "report.html", "desktop")
    wanted = ("rbn", "controls", False, False)
    found = [
        r.accuracy
        for r in Store(out).records.values()
        if (r.config.norm, r.config.shift, r.config.match_moments, r.config.held_out) == wanted
    ]
    assert len(found) == 2
    assert f"{100 * fmean(found):.2f} ±" in page.locator("#arms-clean").text_content()
    assert page.errors == []
    assert len(page.requests) == 1


def test_the_page_names_a_command_that_runs_all_anywhere():
    given = "rbnorm study all --seeds 3 --shard 2/4 --ray=auto --no-run --out 'a b' --epochs 2"
    assert reproducing(given) == "rbnorm study all --seeds 3 --epochs 2"


def part(*more):
    return ("study", "fine-tune", *TINY, *more)


@pytest.fixture(scope="module")
def part_alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    done = called(*part(), cwd=folder)
    assert done.returncode == 0, done.stderr
    return results(folder / "out")


def test_shards_end_with_the_same_records(part_alone, tmp_path):
    first = called(*part("--shard", "2/2"), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "wait for the tuning runs of other shards" in first.stderr
    for shard in ("1/2", "2/2"):
        done = called(*part("--shard", shard), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out") == part_alone


def test_a_local_ray_ends_with_the_same_records(part_alone, tmp_path):
    done = run(*part("--ray", "local"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out") == part_alone


def test_ray_without_a_cluster_is_refused(tmp_path):
    # in a process of its own: Ray's client ends its process a while after it lost a cluster
    done = run(*part("--ray", "auto"), cwd=tmp_path)
    assert done.returncode == 2
    assert "--ray auto: no cluster answers" in done.stderr
    assert not (tmp_path / "out").exists()


def lines(folder):
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_study_continues_to_the_same_records(part_alone, tmp_path):
    victim = subprocess.Popen(
        command(*part()), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while lines(tmp_path / "out") < 2:
            assert victim.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        victim.kill()
        victim.wait()
    assert 2 <= lines(tmp_path / "out") < len(part_alone)
    with (tmp_path / "out" / "records.jsonl").open("ab") as file:
        file.write(b'{"schema": 2, "key": "torn')  # as if killed in the middle of a line
    done = run(*part(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out") == part_alone


def test_without_runs_the_page_says_so(tmp_path):
    done = called(*part("--no-run"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fine-tune: Not run." in done.stdout
    assert not (tmp_path / "out" / "records.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["everything"], "unknown study 'everything': choose from ablation, batch-size"),
        (["primary", "--shard", "3/2"], "--shard i/n takes an i from 1 to n, not '3/2'"),
        (["primary", "--rates", "fast"], "rates are numbers"),
        (["primary", "--rates", "-1"], "lr must be a positive number, not -1.0"),
        (["primary", "--seeds", "0"], "seeds must be at least 1, not 0"),
        (["primary", "--batch-size", "31"], "31 images cannot be cut into parts of 2"),
        (["primary", "--data", "imagenet"], "unknown data 'imagenet'"),
        (["primary", "--data", "digits", "--limit", "10"], "batch size 32 is more than the 10"),
        (["primary", "--data", "imagefolder:nowhere"], "there is no folder"),
        (["networks", "--networks", "small:resnet18x"], "unknown model"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments, "--out", "out"]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert message in written.err
    assert written.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"schema": 1}', "records of schema 1 and this version reads schema 2"),
        ('{"schema": 2, "key": "torn', "line 1 is no record"),
    ],
)
def test_records_it_cannot_read_are_refused_and_kept(tmp_path, capsys, line, message):
    path = tmp_path / "records.jsonl"
    path.write_text(line + "\n")
    assert main(["study", "fine-tune", "--data", "digits", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert path.read_text() == line + "\n"
