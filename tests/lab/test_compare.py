"""The whole command: run, killed and continued, on two processes, and its page in a browser."""

import json
import subprocess
import sys
import time

import pytest
from support import VIEWPORTS, assert_fits, command, environment, execute, opened, run

from rbnorm_lab.store import RecordStore

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
            record.calibration,
        )
        for key, record in RecordStore(folder).load().items()
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


def test_it_prints_a_table_and_an_answer(demo):
    out, done = demo
    assert done.stderr == ""
    for text in ("accuracy %", "minus BN, points", "On held-out images", f"Report: {out.name}/"):
        assert text in done.stdout
    rows = [line.split()[:3] for line in done.stdout.splitlines() if "±" in line]
    assert rows == [["32", "bn", "2"], ["32", "rbn", "2"], ["16", "bn", "2"], ["16", "rbn", "2"]]


def test_it_learns(demo):
    accuracies = [record.accuracy for record in RecordStore(demo[0]).load().values()]
    assert len(accuracies) == 8
    assert min(accuracies) > 0.5


def test_it_leaves_these_files_and_no_others(demo):
    names = sorted(path.name for path in demo[0].iterdir() if path.suffix != ".lock")
    assert names == ["accuracy.png", "accuracy.svg", "records.jsonl", "report.html"]


def test_the_same_command_again_runs_nothing_and_draws_the_same_page(demo):
    out, _ = demo
    before = {name: (out / name).read_bytes() for name in ("records.jsonl", "report.html")}
    again = run(*SMALL, "--seeds", 2, "--out", "out", cwd=out.parent)
    assert again.returncode == 0, again.stderr
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_killed_study_continues_to_the_same_records(demo, tmp_path):
    arguments = (*SMALL, "--seeds", "2", "--out", "out")
    victim = subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 100
        while lines(tmp_path / "out") < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        victim.kill()
        victim.wait()
    survived = lines(tmp_path / "out")
    assert 3 <= survived < 8
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "out") == 8
    assert results(tmp_path / "out") == results(demo[0])


def test_two_processes_train_data_parallel(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["compare", "--norms", "bn,rbn", "--batch-sizes", "32", "--seeds", "1"]
    reduced = ["--epochs", "2", "--limit", "320", "--out", "out"]
    done = execute([*torchrun, "-m", "rbnorm", *arguments, *reduced], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Report: ") == 1
    records = list(map(json.loads, (tmp_path / "out" / "records.jsonl").read_text().splitlines()))
    assert [record["config"]["norm"] for record in records] == ["bn", "rbn"]
    for record in records:
        assert record["config"]["processes"] == 2
        assert record["config"]["batch_size"] == 32
        final = record["epochs"][-1]
        assert final["test_accuracy"] > 0.5
        # over all 500 test images, each counted once
        assert final["test_accuracy"] * 500 == pytest.approx(round(final["test_accuracy"] * 500))
    assert "Training used 2 processes" in (tmp_path / "out" / "report.html").read_text()


@pytest.fixture(params=VIEWPORTS)
def page(request, browser, demo):
    page = opened(browser, demo[0] / "report.html", request.param)
    yield page
    page.close()


def test_the_page_asks_for_nothing_and_logs_no_error(page):
    assert page.errors == []
    others = [url for url in page.requests if not url.startswith("data:")]
    assert len(others) == 1
    assert others[0].endswith("report.html")


def test_the_page_shows_three_figures(page):
    figures = page.locator('figure [lang="en"] svg:visible')
    assert figures.count() == 3
    for i in range(3):
        box = figures.nth(i).bounding_box()
        assert box["width"] > 300
        assert box["height"] > 100
    text = page.locator("figure").all_inner_texts()
    assert "test accuracy (%)" in figures.nth(0).text_content()
    assert "test loss" in figures.nth(1).text_content()
    assert "normalisation layer, input to output" in figures.nth(2).text_content()
    assert "standard deviation of these means over the channels" in text[2]


def test_the_page_answers_and_says_how_it_was_compared(page):
    answer = page.locator("#answer").inner_text()
    assert answer.startswith("On held-out images, at batch size 32")
    body = page.locator("body").inner_text()
    for text in (
        "Every norm of a seed starts from the same initial weights",
        "Every norm of a seed sees the same batches in the same order",
        "rbnorm compare --norms bn,rbn --batch-sizes 32,16 --epochs 2 --limit 320 --seeds 2",
        "cifar-resnet8",
    ):
        assert text in body
    assert page.locator("#table tbody tr").count() == 4


def test_the_page_answers_in_chinese(page):
    page.click("#language")
    assert page.title() == "RBN 与其他归一化的对比"
    assert page.locator("#answer").inner_text().startswith("在测试图像上，批大小为 32 时")
    drawn = page.locator('figure [lang="zh-Hans"] svg:visible')
    assert "测试准确率（%）" in drawn.nth(0).text_content()
    assert "训练周期" in drawn.nth(1).text_content()
    assert "Every norm of a seed" not in page.locator("body").inner_text()


def test_the_figures_ink_is_the_colour_of_the_text(page):
    colour = "element => getComputedStyle(element).fill"
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert page.locator("figure svg text").first.evaluate(colour) == ink


def test_the_page_is_no_wider_than_its_window(page):
    assert_fits(page)


def test_the_table_fits_a_phone_with_a_picture_of_every_difference(page):
    page.set_viewport_size({"width": 390, "height": 800})
    try:
        assert_fits(page)
        table = page.locator("#table")
        assert table.bounding_box()["width"] <= 390
        differences = [text for text in table.locator("td:nth-child(5)").all_inner_texts() if text]
        assert table.locator(".paired").count() == len(differences) > 0
        assert "paired t test over seeds" in page.locator("body").inner_text()
    finally:
        page.set_viewport_size({"width": 1280, "height": 720})


def test_norms_spelt_differently_are_one_and_any_norm_has_its_figures(tmp_path):
    norms = "frn,rbn:statistic=max:restrict=tanh,rbn:restrict=tanh:statistic=max"
    done = run(
        *("compare", "--norms", norms, "--batch-sizes", 16, "--epochs", 1, "--limit", 32),
        *("--seeds", 1, "--save-models", "--out", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    records = RecordStore(tmp_path / "out").load().values()
    assert [r.config.norm for r in records] == ["frn", "rbn:restrict=tanh:statistic=max"]
    assert (tmp_path / "out" / "report.html").exists()
    names = sorted(path.name for path in (tmp_path / "out" / "models").iterdir())
    assert [name.split("-batch")[0] for name in names] == ["frn", "rbn-restrict=tanh-statistic=max"]
