"""The page of a study in a browser: from simulated records, and without any."""

from dataclasses import replace

import pytest
from simulated import comparison, corrupted, failures_of, make_study, records_of, results_of
from support import CONFIG, VIEWPORTS, assert_fits, opened

from rbnorm_lab.names import NORMS
from rbnorm_lab.plots import styles_of
from rbnorm_lab.studies.figures import BY_EPOCH, traced_figure
from rbnorm_lab.studies.page import write_study
from rbnorm_lab.studies.rates import Candidate
from rbnorm_lab.studies.sentences import answer
from rbnorm_lab.text import bracketed, with_margin

COMMAND = "rbnorm study simulated --out out"
TUNING = [
    (Candidate(replace(CONFIG, lr=0.05), 0.8812), False),
    (Candidate(replace(CONFIG, norm_batch=2), 0.9), True),
]
STUDY = make_study((comparison(), comparison(measure="shifted")), groups=("whole", "half"))
EFFECT = {"bn": 0.0, "gn": -0.03, "rbn": 0.01}


def accuracy(arm, seed):
    if arm.label == "gn" and seed == 0:
        return None
    return 0.9 + 0.003 * seed + EFFECT[arm.label] * (1 + 0.1 * seed)


def shifts(arm, seed):
    statistics = ("trained",) if arm.label == "gn" else ("trained", "test-batch")
    return {
        name: corrupted(0.5 + EFFECT[arm.label] + 0.004 * seed, noise=0.3) for name in statistics
    }


RESULTS = results_of(
    STUDY,
    records_of(STUDY, accuracy, shifts),
    failures_of(STUDY, "gn", (0,), "RuntimeError: <b>too large</b>"),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_study(RESULTS, TUNING, folder, [COMMAND])
    return folder


@pytest.fixture(scope="module", params=VIEWPORTS)
def page(request, browser, out):
    page = opened(browser, out / "report.html", request.param)
    yield page
    assert page.errors == []
    page.close()


def cells(page, table):
    rows = page.locator(f"{table} tbody tr").all()
    return [[cell.strip() for cell in row.locator("td").all_inner_texts()] for row in rows]


def test_the_page_and_its_figures_are_files(out):
    names = sorted(path.name for path in out.iterdir())
    figures = ("channel-means", "clean", "shifted")
    drawn = [f"{name}.{suffix}" for name in figures for suffix in ("png", "svg")]
    assert names == sorted(["report.html", *drawn])


def test_accuracy_by_epoch_has_every_seed_and_their_mean():
    """Two epochs make no curve; with three each seed has a line, and the mean another."""
    study = make_study(seeds=(0, 1))
    records = records_of(study, accuracy)
    assert not any(BY_EPOCH.values(record) for record in records.values())
    longer = {k: replace(r, epochs=(r.epochs[0], *r.epochs)) for k, r in records.items()}
    axes = traced_figure(results_of(study, longer), BY_EPOCH).axes[0]
    drawn = [line.get_ydata() for line in axes.get_lines()]
    ends = [100 * accuracy(study.arms[0], seed) for seed in (0, 1)]
    expected = [[end / 2, end / 2, end] for end in (*ends, sum(ends) / 2)]
    assert [list(line) for line in drawn[:3]] == [pytest.approx(row) for row in expected]
    assert len(drawn) == 3 + 2 + 3  # one seed of gn has no run


def test_the_same_records_draw_the_same_files(out, tmp_path):
    write_study(RESULTS, TUNING, tmp_path, [COMMAND])
    for path in out.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_page_asks_for_nothing_and_is_no_wider_than_its_window(page):
    others = [url for url in page.requests if not url.startswith("data:")]
    assert len(others) == 1
    assert_fits(page)


def test_the_page_answers_in_the_chosen_language(page):
    said = answer(RESULTS)
    assert page.locator("#answer").inner_text() == said.en
    assert page.locator("h1").inner_text() == page.title() == "Norms compared"
    page.click("#language")
    assert page.locator("#answer").inner_text() == said.zh
    assert page.locator("h1").inner_text() == page.title() == "归一化的比较"
    shown = page.locator("body").inner_text()
    assert "<RBN> 更好吗？" in shown
    assert "Is <RBN> better?" not in shown
    page.click("#language")
    assert page.locator("#answer").inner_text() == said.en


def test_a_chinese_browser_begins_in_chinese(browser, out):
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    page.goto((out / "report.html").as_uri())
    assert page.locator("h1").inner_text() == "归一化的比较"
    context.close()


def test_without_scripts_the_page_is_english(browser, out):
    context = browser.new_context(java_script_enabled=False, locale="zh-CN")
    page = context.new_page()
    page.goto((out / "report.html").as_uri())
    assert page.locator("h1").inner_text() == "Norms compared"
    context.close()


def test_the_tables_have_the_numbers_of_the_results(page):
    rbn = next(r for r in RESULTS.arms if (r.arm.group, r.arm.label) == ("whole", "rbn"))
    for measure in ("clean", "shifted"):
        rows = {(group, arm): rest for group, arm, *rest in cells(page, f"#arms-{measure}")}
        gain = bracketed(rbn.gain[measure].estimate)
        assert rows["whole", "rbn"] == ["6/6", with_margin(rbn.accuracy[measure]), gain, "0.031"]
        assert rows["whole", "gn"][0] == "5/6"
        assert rows["half", "bn"][2:] == ["", ""]
    primary = cells(page, "#primary")
    assert [row[3:] for row in primary] == [
        [bracketed(rbn.gain[measure].estimate), "0.031", "0.062"]
        for measure in ("clean", "shifted")
    ]


def test_corruptions_are_shown_by_kind_and_statistics(page):
    tables = page.locator("table.corruptions")
    assert tables.count() == 4
    heads = tables.nth(0).locator("thead th").all_text_contents()
    rows = tables.nth(0).locator("tbody tr").all()
    assert [row.locator("td").nth(0).inner_text() for row in rows] == ["bn", "gn", "rbn"]
    noise = next(i for i, head in enumerate(heads) if "Gaussian noise" in head)
    assert [row.locator("td").nth(noise).inner_text() for row in rows] == ["30.00"] * 3
    assert [cells(page, "#controls")[0][i] for i in (1, 2, 4)] == [
        "statistics of the test batch",
        "6",
        "+0.00 [n/a]",
    ]


def test_figures_show_every_arm(page):
    for measure in ("clean", "shifted"):
        drawing = page.locator(f"#figure-{measure} [lang=en] svg:visible")
        assert drawing.bounding_box()["width"] > 300
        text = drawing.text_content()
        for label in ("whole", "half", "bn", "gn", "rbn", "minus the baseline"):
            assert label in text
        chinese = page.locator(f"#figure-{measure} .wide [lang=zh-Hans] svg").text_content()
        assert "减去同一种子的基线（百分点）" in chinese
        assert "minus the baseline" not in chinese


def test_failures_and_the_way_to_repeat_it_are_named(page):
    assert cells(page, "#failures")[0] == ["whole: gn", "0", "RuntimeError: <b>too large</b>"]
    assert COMMAND in page.locator("pre").inner_text()
    page.locator("details summary").get_by_text("learning rates were chosen").click()
    assert cells(page, "#tuning")[0] == ["cifar-resnet8", "bn", "0.05", "88.12", ""]
    assert cells(page, "#tuning")[1][1:] == ["bn, normalisation batch 2", "0.1", "90.00", "✓"]


def test_the_figures_ink_is_the_colour_of_the_text(page):
    ink = page.evaluate("getComputedStyle(document.body).color")
    fill = page.locator("figure svg text").first.evaluate("e => getComputedStyle(e).fill")
    assert fill == ink


@pytest.mark.parametrize("language", ["en", "zh-CN"])
def test_a_study_without_records_says_so(browser, tmp_path, language):
    write_study(results_of(STUDY), [], tmp_path, [COMMAND])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    context = browser.new_context(locale=language)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    words = "not run" if language == "en" else "未运行"
    assert page.locator(".not-run").all_inner_texts() == [words]
    settings = page.locator("#settings").inner_text()
    arm = "half: rbn" if language == "en" else "half：rbn"
    assert f"{arm}\tnorm=rbn, batch_size=32\n" in settings
    assert "epochs=2" in settings
    context.close()


def test_no_two_norms_look_the_same():
    norms = [*NORMS, *(f"rbn:scale_bias_init={value}" for value in range(2, 12))]
    assert len({style[:2] for style in styles_of(norms).values()}) == len(norms)


def test_a_norm_without_a_style_takes_a_free_colour():
    norms = ["bn", "rbn:statistic=max", "rbn", "rbn:statistic=std"]
    assert len({color for color, _, _ in styles_of(norms).values()}) == len(norms)
