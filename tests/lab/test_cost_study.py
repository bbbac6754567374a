"""The study of costs: from the benchmark's rows to its page, and the command around it."""

import json
import re
from dataclasses import asdict, replace

import pytest
from support import VIEWPORTS, assert_fits, opened

from rbnorm_cli.main import main
from rbnorm_lab.bench.cases import Case, Row
from rbnorm_lab.bench.rows import load, save
from rbnorm_lab.catalogue import cost
from rbnorm_lab.store import Store
from rbnorm_lab.studies.results import collect
from rbnorm_lab.studies.sentences import answer

CASES = {
    mode: Case("norms", mode, "float32", "channels_last", (32, 1, 28, 28))
    for mode in ("training", "inference")
}
MACHINE = {"norms": {"torch": "9.8.7", "cpu": "<A CPU>", "device": "cpu", "commit": None}}
NOT_RUN = {"en": "not run", "zh-CN": "未运行"}


def make_row(mode, candidate, seconds, **counts):
    """A row whose quartiles lie a tenth below and a fifth above its median."""
    numbers = {"saved_bytes": None, "peak_bytes": 6_000_000, "parameters": 1000, "buffers": 21}
    return Row(
        **asdict(CASES[mode]),
        candidate=candidate,
        backend="torch",
        median_s=seconds,
        q1_s=0.9 * seconds,
        q3_s=1.2 * seconds,
        rounds=7,
        calls=1,
        ratio_to_batchnorm=seconds / 0.5,
        threads=3,
        **{**numbers, "flops": 1_234_500_000, **counts},
    )


ROWS = [
    make_row("training", "batchnorm", 0.5, saved_bytes=4_000_000),
    make_row("training", "gn", 0.4, saved_bytes=4_000_000, buffers=0),
    make_row("training", "rbn", 0.6, saved_bytes=5_000_000, peak_bytes=9_000_000, parameters=1040),
    make_row("inference", "batchnorm", 0.1),
    make_row("inference", "gn", 0.2),
    make_row("inference", "rbn", 0.13),
]
TABLE = {
    "gn": "1,000  0   1,234.5  0.80 [0.72, 0.96]  2.00 [1.80, 2.40]  1.00  1.00",
    "batchnorm": "1,000  21  1,234.5  1.00 [0.90, 1.20]  1.00 [0.90, 1.20]  1.00  1.00",
    "rbn": "1,040  21  1,234.5  1.20 [1.08, 1.44]  1.30 [1.17, 1.56]  1.25  1.50",
}


def make_rows(out, rows=ROWS, machine=MACHINE):
    (out / "bench").mkdir(parents=True)
    save(out / "bench", rows, machine)
    return out


def study(out):
    return main(["study", "cost", "--out", str(out), "--no-run"])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = make_rows(tmp_path_factory.mktemp("costs") / "an out")
    assert study(folder) == 0
    return folder


@pytest.fixture(scope="module", params=VIEWPORTS)
def page(request, browser, out):
    page = opened(browser, out / "cost" / "report.html", request.param)
    yield page
    assert page.errors == []
    page.close()


def results(out):
    return collect(cost.study(None, None), Store(out))


def test_the_table_has_the_numbers_of_the_rows_the_cheapest_step_first(page):
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#costs tbody tr").all()]
    assert rows == [[norm, *re.split(" {2,}", cells)] for norm, cells in TABLE.items()]
    measured = page.locator(".note").first.inner_text()
    assert "500.0 ms for a training step, 100.0 ms for inference, 4.0 MB kept, 6.0 MB" in measured
    assert "noise of 32x1x28x28, float32, channels_last, threads: 3, rounds: 7" in measured


def test_the_page_answers_in_the_chosen_language(page, out):
    said = answer(results(out))
    assert page.locator("#answer").inner_text() == said.en
    page.click("#language")
    assert page.locator("#answer").inner_text() == said.zh
    assert page.locator("h1").inner_text() == page.title() == "各种归一化的代价"
    assert "What the norms cost" not in page.locator("body").inner_text()
    page.click("#language")
    assert page.locator("h1").inner_text() == page.title() == "What the norms cost"


def test_the_page_asks_for_nothing_and_is_no_wider_than_its_window(page):
    assert len([url for url in page.requests if not url.startswith("data:")]) == 1
    assert_fits(page)


def test_the_page_names_its_commands_and_its_machine(page, out):
    assert page.locator("pre").inner_text() == "rbnorm study cost"
    facts = dict(row.split("\t") for row in page.locator("#machine").inner_text().splitlines())
    assert facts.pop("measured by") == f"rbnorm bench --parts norms --out '{out / 'bench'}'"
    assert facts == {"torch": "9.8.7", "cpu": "<A CPU>", "device": "cpu", "commit": "unknown"}


def test_the_answer_compares_rbn_and_names_the_extremes(out):
    said = answer(results(out))
    for number in (
        *("1.20 [1.08, 1.44]", "1.30 [1.17, 1.56]", "1.25", "1.50", "40 (4.0%)"),
        *("gn (0.80)", "rbn (1.20)"),
    ):
        assert number in said.en
        assert number in said.zh


def test_the_figure_has_a_panel_for_each_ratio(out):
    assert sorted(path.name for path in (out / "cost").iterdir()) == [
        *("ratios.png", "ratios.svg", "report.html")
    ]
    (section,) = cost.sections(results(out))
    panels = section.figure[1](False).axes
    marks = {
        axes.get_title(loc="left"): [container[0].get_xdata()[0] for container in axes.containers]
        for axes in panels
    }
    assert marks == {
        "training step": pytest.approx([0.8, 1.0, 1.2]),
        "inference": pytest.approx([2.0, 1.0, 1.3]),
        "kept for backward": pytest.approx([1.0, 1.0, 1.25]),
        "peak memory": pytest.approx([1.0, 1.0, 1.5]),
    }
    step = panels[0].containers[2].lines[2][0].get_segments()[0]
    assert [x for x, _ in step] == pytest.approx([1.08, 1.44])
    assert len({container[0].get_marker() for container in panels[0].containers}) == 3


def test_rows_of_a_gpu_name_the_command_that_measures_on_one(tmp_path):
    make_rows(tmp_path, machine={"norms": {"device": "A <GPU>"}})
    assert study(tmp_path) == 0
    expected = f"rbnorm bench --parts norms --device cuda --out {tmp_path / 'bench'}"
    assert expected in (tmp_path / "cost" / "report.html").read_text()


@pytest.mark.parametrize("language", NOT_RUN)
def test_without_rows_the_page_says_what_would_measure_them(browser, tmp_path, language, capsys):
    other = [replace(row, part="norms-resnet50") for row in ROWS]
    make_rows(tmp_path, other, {"norms-resnet50": {}})
    assert study(tmp_path) == 0
    assert "cost: Not run." in capsys.readouterr().out
    assert load(tmp_path / "bench")[0] == other
    assert [path.name for path in (tmp_path / "cost").iterdir()] == ["report.html"]
    context = browser.new_context(locale=language)
    page = context.new_page()
    page.goto((tmp_path / "cost" / "report.html").as_uri())
    assert page.locator(".not-run").inner_text() == NOT_RUN[language]
    measuring = f"rbnorm bench --parts norms --out {tmp_path / 'bench'}"
    assert measuring in page.locator("li").first.inner_text()
    context.close()


def lines(rows):
    return "".join(json.dumps(asdict(row)) + "\n" for row in rows)


BROKEN = {
    "no JSON": ("{\n", "not rows of this benchmark"),
    "no BatchNorm": (lines(ROWS[2:]), "KeyError: 'batchnorm'"),
    "no inference": (lines(ROWS[:3]), "KeyError: 'inference'"),
    "no RBN": (lines(row for row in ROWS if row.candidate != "rbn"), "KeyError: 'rbn'"),
    "a norm in one mode": (lines(ROWS[:-1]), "KeyError: 'rbn'"),
    "no counts": (lines(replace(row, parameters=None) for row in ROWS), "TypeError: "),
    "words for seconds": (
        lines(replace(row, median_s="fast") for row in ROWS),
        "not rows of this benchmark (Expected `float`, got `str`",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rows_it_cannot_use_are_one_sentence_and_kept(name, tmp_path, capsys):
    content, message = BROKEN[name]
    make_rows(tmp_path)
    path = tmp_path / "bench" / "rows.jsonl"
    path.write_text(content)
    before = path.read_bytes()
    assert study(tmp_path) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert path.read_bytes() == before
    assert not (tmp_path / "cost").exists()


def test_rows_of_no_known_machine_are_refused(tmp_path, capsys):
    make_rows(tmp_path, machine={})
    assert study(tmp_path) == 2
    assert "KeyError: 'norms'" in capsys.readouterr().err
