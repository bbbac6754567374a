"""The whole command: run, given again, its verdict, and its page in a browser."""

import sys

import pytest
from simulated import records_of, results_of
from support import VIEWPORTS, assert_fits, called, execute, opened, run

from rbnorm_cli.parser import make_parser
from rbnorm_lab.catalogue import compare
from rbnorm_lab.store import Store
from rbnorm_lab.studies import work
from rbnorm_lab.studies.sentences import answer
from rbnorm_lab.studies.study import Settings

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


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo, reduced: two norms, two batch sizes, two seeds, two epochs."""
    folder = tmp_path_factory.mktemp("demo")
    done = run(*SMALL, "--seeds", 2, "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_it_says_how_it_goes_and_prints_a_table_and_an_answer(demo):
    _, done = demo
    lines = done.stderr.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("1 of 8: bn, batch 32, seed 0: ")
    for text in ("compare: Batch size 32: contrast 5 takes bn from ", "shifted", "report.html"):
        assert text in done.stdout
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert [row for row in rows if row in ("bn", "rbn")] == ["bn", "rbn"] * 2


def test_it_learns_and_is_tested_under_loss_of_contrast_with_all_statistics(demo):
    records = Store(demo[0]).records.values()
    assert len(records) == 8
    for record in records:
        assert record.accuracy > 0.5
        assert list(record.shifted) == ["trained", "test-batch"]
        assert {c for of in record.shifted.values() for c in of} == {"clean", "contrast/5"}


def test_it_leaves_these_files_and_no_others(demo):
    names = sorted(path.name for path in demo[0].iterdir() if path.suffix != ".lock")
    figures = ("channel-means", "clean", "shifted")
    drawn = [f"{name}.{suffix}" for name in figures for suffix in ("png", "svg")]
    assert names == sorted([".finished", *drawn, "records.jsonl", "report.html"])


def test_the_same_command_again_repeats_its_answer_and_draws_what_is_missing(demo, monkeypatch):
    out, done = demo
    before = {path: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(work, "train_run", None)  # a run would fail and be recorded so
    for missing in ((), ("report.html", "clean.png")):
        for name in missing:
            (out / name).unlink()
        again = called(*SMALL, "--seeds", 2, "--out", "out", cwd=out.parent)
        assert again.stdout == "Nothing left to run: out has every run.\n" + done.stdout
        assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_an_answer_that_is_repeated_needs_no_torch(demo):
    code = "import sys; from rbnorm_cli.main import main; main(sys.argv[1:]); print(*sys.modules)"
    arguments = [*SMALL, "--seeds", "2", "--out", "out"]
    done = execute([sys.executable, "-c", code, *arguments], cwd=demo[0].parent)
    assert done.stdout.startswith("Nothing left to run")
    assert "torch" not in done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("viewport", VIEWPORTS)
def test_the_page_fits_and_shows_every_figure_in_both_languages(demo, browser, viewport):
    page = opened(browser, demo[0] / "report.html", viewport)
    assert page.errors == []
    others = [url for url in page.requests if not url.startswith("data:")]
    assert len(others) == 1
    assert page.locator('figure [lang="en"] svg:visible').count() == 3
    assert page.locator("#arms-clean tbody tr").count() == 4
    assert page.locator("#controls tbody tr").count() == 4
    assert "rbnorm compare --norms bn,rbn" in page.locator("pre").inner_text()
    assert_fits(page)
    page.click("#language")
    assert page.title() == "RBN 与其他归一化的对比"
    drawn = page.locator('figure [lang="zh-Hans"] svg:visible')
    assert "测试准确率（%）" in drawn.nth(0).text_content()
    page.close()


def test_norms_spelt_differently_are_one_and_every_model_is_kept(tmp_path):
    norms = "ln2d,rbn:statistic=max:restrict=tanh,rbn:restrict=tanh:statistic=max"
    options = f"--norms {norms} --batch-sizes 16 --epochs 1 --limit 32 --seeds 1 --out out"
    shifted = ("--shifted", "noise", "blur:1", "--save-models")
    done = called("compare", *options.split(), *shifted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = list(Store(tmp_path / "out").records.values())
    assert [r.config.norm for r in records] == ["ln2d", "rbn:restrict=tanh:statistic=max"]
    assert list(records[0].shifted["trained"]) == ["clean", "noise/3", "blur/1"]
    names = sorted(path.name for path in (tmp_path / "out" / "models").iterdir())
    assert [name.split("-batch")[0] for name in names] == [
        "ln2d",
        "rbn-restrict=tanh-statistic=max",
    ]


def verdict(**shifted):
    """The answer of a comparison of these norms, whose accuracy under loss of contrast is given."""
    settings = Settings.of(
        vars(make_parser("").parse_args(["compare"]))
        | {"norms": list(shifted), "batch_sizes": ["64"]},
        shift="controls",
        conditions=("contrast/5",),
    )
    study = compare.study(settings, None)

    def measured(arm, seed):
        spread = {"bn": 0.0, "gn": 0.001, "rbn": 0.02}[arm.label]
        own = {"clean": 0.98, "contrast/5": shifted[arm.label] + spread * (seed - 1)}
        other = {"clean": 0.97, "contrast/5": 0.9 + 0.001 * seed}
        return {"trained": own} | ({"test-batch": other} if arm.label == "bn" else {})

    return answer(results_of(study, records_of(study, lambda arm, seed: 0.98, measured)))


def test_a_verdict_says_what_fails_what_wins_it_back_and_whether_rbn_does():
    said = verdict(bn=0.28, gn=0.95, rbn=0.31)
    parts = [
        "Batch size 64: contrast 5 takes bn from 98.00 to 28.00 %",
        "most is won back by gn (+67.00 points",
        "on these images no detectable difference between rbn and bn (+3.00 points",
        "on clean images no detectable difference between rbn and bn (+0.00",
    ]
    assert [said.en.index(part) for part in parts] == sorted(said.en.index(part) for part in parts)
    assert "bn 的准确率在对比度 5 下由 98.00% 变为 28.00%" in said.zh
    assert "挽回最多的是测试批统计量（" in verdict(bn=0.28, gn=0.5).zh
    assert "nothing that was tried wins it back" in verdict(bn=0.95, gn=0.5).en
    assert ", too few seeds to be sure)" in verdict(bn=0.9, gn=0.5).en
    assert "rbn" not in verdict(bn=0.28, gn=0.5).en
