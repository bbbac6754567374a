"""The whole command: run, killed and continued, on two processes, and its page in a browser."""

import subprocess
import sys
import time

import pytest
from support import VIEWPORTS, assert_fits, command, environment, execute, opened, run

from rbnorm_lab.store import Store

SMALL = (
    "compare",
    "--norms",
    "bn,rbn",
    "--batch-sizes",
    "32,16",
    "--epochs",
    "2",
    "--limit",
    "320",
)


def results(folder):
    """What records say of their runs, without what a clock or another machine would change."""
    return {
        key: (
            [(e.train_loss, e.train_accuracy, e.test_loss, e.test_accuracy) for e in record.epochs],
            record.channel_mean_std,
            record.shifted,
            record.calibration,
        )
        for key, record in Store(folder).records.items()
    }


def lines(folder):
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo, reduced: two norms, two batch sizes, two seeds, two epochs."""
    folder = tmp_path_factory.mktemp("demo")
    done = run(*SMALL, "--seeds", 2, "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_it_says_how_it_goes_and_prints_a_table_and_an_answer(demo):
    out, done = demo
    lines = done.stderr.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("1 of 8: bn, batch 32, seed 0: ")
    for text in ("compare: ", f"Report: {out.name}/report.html", "shifted"):
        assert text in done.stdout
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert [row for row in rows if row in ("bn", "rbn")] == ["bn", "rbn"] * 2


def test_it_learns_and_is_tested_under_loss_of_contrast_with_all_statistics(demo):
    records = Store(demo[0]).records.values()
    assert len(records) == 8
    for record in records:
        assert record.accuracy > 0.5
        assert list(record.shifted) == ["trained", "re-estimated", "test-batch"]
        assert {c for of in record.shifted.values() for c in of} == {"clean", "contrast/5"}


def test_it_leaves_these_files_and_no_others(demo):
    names = sorted(path.name for path in demo[0].iterdir() if path.suffix != ".lock")
    figures = ("channel-means", "clean", "curves", "shifted", "statistics")
    drawn = [f"{name}.{suffix}" for name in figures for suffix in ("png", "svg")]
    assert names == sorted([*drawn, "records.jsonl", "report.html"])


def test_the_same_command_again_runs_nothing_and_draws_the_same_page(demo):
    out, _ = demo
    before = {name: (out / name).read_bytes() for name in ("records.jsonl", "report.html")}
    again = run(*SMALL, "--seeds", 2, "--out", "out", cwd=out.parent)
    assert again.returncode == 0, again.stderr
    assert "Nothing left to run" in again.stdout
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_killed_study_continues_to_the_same_records(demo, tmp_path):
    arguments = (*SMALL, "--seeds", "2", "--out", "out")
    victim = subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while lines(tmp_path / "out") < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        victim.kill()
        victim.wait()
    assert 3 <= lines(tmp_path / "out") < 8
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out") == results(demo[0])


def test_two_processes_train_data_parallel(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["compare", "--norms", "bn,rbn", "--batch-sizes", "32", "--seeds", "1"]
    reduced = ["--epochs", "2", "--limit", "320", "--shifted", "--out", "out"]
    done = execute([*torchrun, "-m", "rbnorm", *arguments, *reduced], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Report: ") == 1
    records = list(Store(tmp_path / "out").records.values())
    assert [record.config.norm for record in records] == ["bn", "rbn"]
    for record in records:
        assert (record.config.processes, record.config.batch_size) == (2, 32)
        assert record.shifted == {}
        assert record.accuracy > 0.5
        # over all 500 test images, each counted once
        assert record.accuracy * 500 == pytest.approx(round(record.accuracy * 500))


@pytest.mark.parametrize("viewport", VIEWPORTS)
def test_the_page_fits_and_shows_every_figure_in_both_languages(demo, browser, viewport):
    page = opened(browser, demo[0] / "report.html", viewport)
    assert page.errors == []
    others = [url for url in page.requests if not url.startswith("data:")]
    assert len(others) == 1
    assert page.locator('figure [lang="en"] svg:visible').count() == 5
    assert page.locator("#arms-clean tbody tr").count() == 4
    assert page.locator("#controls tbody tr").count() == 8
    assert "rbnorm compare --norms bn,rbn" in page.locator("pre").inner_text()
    assert_fits(page)
    page.click("#language")
    assert page.title() == "RBN 与其他归一化的对比"
    drawn = page.locator('figure [lang="zh-Hans"] svg:visible')
    assert "测试准确率（%）" in drawn.nth(0).text_content()
    page.close()


def test_norms_spelt_differently_are_one_and_every_model_is_kept(tmp_path):
    norms = "frn,rbn:statistic=max:restrict=tanh,rbn:restrict=tanh:statistic=max"
    done = run(
        *("compare", "--norms", norms, "--batch-sizes", 16, "--epochs", 1, "--limit", 32),
        *("--seeds", 1, "--shifted", "noise", "blur:1", "--save-models", "--out", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    records = list(Store(tmp_path / "out").records.values())
    assert [r.config.norm for r in records] == ["frn", "rbn:restrict=tanh:statistic=max"]
    assert list(records[0].shifted["trained"]) == ["clean", "noise/3", "blur/1"]
    names = sorted(path.name for path in (tmp_path / "out" / "models").iterdir())
    assert [name.split("-batch")[0] for name in names] == ["frn", "rbn-restrict=tanh-statistic=max"]
