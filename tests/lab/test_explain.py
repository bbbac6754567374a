"""``rbnorm explain``: the page's math against the layer, its data, and the page in a browser."""

import base64
import inspect
import io
import json
import re
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image
from support import VIEWPORTS, assert_fits, opened, run
from torch import nn

import rbnorm
from rbnorm.definition import literal_rbn
from rbnorm_lab.explain.network import layer_facts
from rbnorm_lab.explain.page import PAGE, write_page
from rbnorm_lab.explain.photographs import SIDE, photograph_parts
from rbnorm_lab.models import build_model

WEIGHTS = ("w_m", "w_v", "w_b", "gamma", "beta")
CASES = ("mean-below", "mean-above", "var-below", "var-above")


@pytest.fixture(scope="module")
def data():
    return photograph_parts()


@pytest.fixture(scope="module")
def model():
    """Untrained, with weights of its own in the first norm: what the page says is true of any."""
    model = build_model("cifar-resnet8", "rbn", classes=2, channels=3, seed=0).eval()
    torch.manual_seed(1)
    for name in ("center_weight", "scale_weight", "scale_bias", "weight", "bias"):
        nn.init.uniform_(getattr(model.bn1, name), -1, 1)
    return model


@pytest.fixture(scope="module")
def facts(model, data):
    return layer_facts(model, data)


@pytest.fixture(scope="module")
def path(facts, tmp_path_factory):
    path = tmp_path_factory.mktemp("explain") / PAGE
    path.write_text(write_page(facts, 0.987, "rbnorm explain --out o"), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, path):
    page = opened(browser, path, "desktop")
    page.wait_for_selector("body[data-ready]")
    yield page
    assert page.errors == []
    page.close()


def unpacked(text):
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)


def definition(x, weights, *, training, mean=None, var=None, eps=1e-5):
    """One channel, (N, L), by the layer in float64."""
    layer = rbnorm.RepresentativeBatchNorm2d(1, eps=eps, dtype=torch.float64)
    names = ("center_weight", "scale_weight", "scale_bias", "weight", "bias")
    with torch.no_grad():
        for name, value in zip(names, weights.values(), strict=True):
            getattr(layer, name).fill_(value)
        if not training:
            layer.running_mean.fill_(mean)
            layer.running_var.fill_(var)
        return layer.train(training)(x[:, None, None])[:, 0, 0]


def outputs(instances):
    return torch.tensor([one["Y"] for one in instances], dtype=torch.float64)


@pytest.fixture(scope="module")
def closed_form(browser):
    page = browser.new_page()
    page.add_script_tag(content=(files("rbnorm_lab.explain") / "rbn.js").read_text())
    yield page
    page.close()


@pytest.mark.parametrize("seed", range(8))
def test_the_closed_form_of_the_page_is_the_layer(closed_form, seed):
    generator = np.random.default_rng(seed)
    n, length = generator.integers(1, 6), generator.integers(2, 40)
    x = generator.normal(generator.normal(), 10 ** generator.uniform(-2, 2), (n, length))
    weights = dict(zip(WEIGHTS, generator.normal(0, 1, 5).tolist(), strict=True))
    mean, within, between = generator.normal(), generator.gamma(2), generator.gamma(2)
    other = {"mean": mean, "within": within, "between": between}
    trained = closed_form.evaluate(
        "([x, w]) => rbn.forward(x, rbn.batchMoments(x), w)", [x.tolist(), weights]
    )
    tested = closed_form.evaluate(
        "([x, s, w]) => rbn.forward(x, s, w)", [x.tolist(), other, weights]
    )
    tensor = torch.from_numpy(x)
    expected = definition(tensor, weights, training=True)
    torch.testing.assert_close(outputs(trained), expected)
    one_more = 1 + weights["w_m"]
    expected = definition(
        tensor,
        weights,
        training=False,
        mean=one_more * mean,
        var=within + one_more**2 * between,
    )
    torch.testing.assert_close(outputs(tested), expected)


def test_the_training_statistics_are_those_that_recalibration_finds(model, data, facts):
    images = data.train.tensors[0]
    rbnorm.recalibrate(model, [(images, data.train.tensors[1])])
    layer, count = model.bn1, images.shape[0] * SIDE**2
    for channel in facts["channels"]:
        c, more = channel["index"], 1 + channel["w_m"]
        assert layer.running_mean[c].item() == pytest.approx(more * channel["mean"], rel=1e-4)
        var = channel["within"] + more**2 * channel["between"]
        assert layer.running_var[c].item() * (count - 1) / count == pytest.approx(var, rel=1e-4)


@pytest.mark.parametrize(("contrast", "brightness"), [(1, 0), (0.4, -0.2), (2, 0.5)])
def test_maps_of_changed_photographs_are_those_of_the_network(
    model, data, facts, contrast, brightness
):
    strip = Image.open(io.BytesIO(base64.b64decode(facts["images"].partition(",")[2])))
    shown = torch.from_numpy(np.array(strip)).permute(2, 0, 1).unflatten(2, (-1, SIDE))
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    held_out = data.test.tensors[0] * std + mean
    for k, channel in ((0, facts["channels"][0]), (7, facts["channels"][-1])):
        picture = shown[:, :, k].float() / 255
        image = held_out[(held_out - picture).abs().amax((1, 2, 3)).argmin()]
        changed = contrast * (image - mean) + mean + brightness
        with torch.no_grad():
            expected = model.conv1(((changed - mean) / std)[None])[0, channel["index"]].flatten()
        found = contrast * unpacked(channel["maps"][k]) + brightness * unpacked(channel["response"])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_command_trains_and_leaves_one_file(tmp_path):
    done = run("explain", "--out", "o", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "o").iterdir()] == [PAGE]
    written = (tmp_path / "o" / PAGE).read_text(encoding="utf-8")
    accuracy = float(re.search(r"its accuracy is ([\d.]+) %", written)[1])
    assert accuracy > 90
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', written)
    learnt = json.loads(embedded[1])["channels"]
    assert max(abs(channel["w_m"]) for channel in learnt) > 0.2
    assert "<code>rbnorm explain --out o</code>" in written
    assert not re.search(r'(src|href)="(?!data:|https://)', written)


@pytest.mark.parametrize("viewport", VIEWPORTS)
def test_it_asks_for_nothing_and_is_no_wider_than_its_window(browser, path, viewport):
    page = opened(browser, path, viewport)
    page.wait_for_selector("body[data-ready]")
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    assert_fits(page)
    assert page.errors == []
    page.close()


def rows(page, table):
    return [row.locator("td").all_inner_texts() for row in page.locator(f"{table} tbody tr").all()]


def test_a_case_is_what_it_says_and_calibration_helps(page):
    for case in CASES:
        page.click(f"#case-{case}")
        unchanged, changed, as_set = rows(page, "#seen")
        assert changed == as_set
        column = 0 if case.startswith("mean") else 1
        before, moved = (float(row[column].replace("−", "-")) for row in (unchanged, changed))
        assert (moved < before - 0.2) if case.endswith("below") else (moved > before + 0.2)
        page.click("#set-calibrated")
        after = float(rows(page, "#seen")[2][column].replace("−", "-"))
        assert abs(after - before) < abs(moved - before)


def test_the_verdict_says_what_rbn_does_and_whose_weights_it_has(page):
    verdict, presets = page.locator("#verdict"), ("set-bn", "set-learnt", "set-calibrated")
    words = ("RBN is off.", "as this network learnt it", "fitted to this one image")
    for preset, said in zip(presets, words, strict=True):
        page.click(f"#{preset}")
        assert said in verdict.inner_text()
        assert [page.get_attribute(f"#{p}", "aria-pressed") == "true" for p in presets] == [
            p == preset for p in presets
        ]
    page.fill("#w_m", "-0.5")
    assert "as it is set" in verdict.inner_text()
    _, plain, now = (row[0] for row in rows(page, "#seen"))
    assert f"from {plain} to {now}" in verdict.inner_text()


def test_the_page_opens_with_what_the_network_learnt(page, facts):
    assert page.get_attribute("#set-learnt", "aria-pressed") == "true"
    learnt = facts["channels"][0]["w_m"]
    shown = page.locator("#w_m-value").inner_text().replace("−", "-")
    assert float(shown) == pytest.approx(learnt, abs=0.006)


def test_every_formula_stands_beside_its_line_of_the_definition(page):
    lines = page.locator("#flow code").all_inner_texts()
    assert len(lines) == 6
    source = inspect.getsource(literal_rbn)
    assert all(line in source for line in lines)


def test_every_channel_and_image_can_be_chosen(page, facts):
    seen = set()
    for channel in range(len(facts["channels"])):
        page.select_option("#channel", str(channel))
        for image in range(len(facts["channels"][0]["maps"])):
            page.check(f'[name="image"][value="{image}"]')
            seen.add(page.locator("#verdict").inner_text())
    assert len(seen) > 20


def test_the_whole_page_can_be_worked_by_keyboard(page):
    controls = ["language", *(f"case-{case}" for case in CASES), "image", "channel", "statistics"]
    controls += ["brightness", "contrast", "w_m", "w_v", "w_b"]
    controls += ["set-bn", "set-learnt", "set-calibrated"]
    visited = []
    page.locator("#language").focus()
    for _ in range(len(controls)):
        visited.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
        shape = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert shape != "none" or visited[-1] == "image"
        page.keyboard.press("Tab")
    assert visited == controls
    page.locator("#case-mean-above").focus()
    page.keyboard.press("Enter")
    assert page.get_attribute("#case-mean-above", "aria-pressed") == "true"
    before = page.locator("#facts-X_cm").inner_text()
    page.locator("#w_m").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#w_m-value").inner_text() == "−0.01"
    page.keyboard.press("PageDown")
    assert page.locator("#facts-X_cm").inner_text() != before
    page.locator('[name="image"]:checked').focus()
    page.keyboard.press("ArrowRight")
    assert page.locator('[name="image"]:checked').input_value() == "1"


def test_both_languages_say_everything_and_every_picture_has_words(page, facts):
    assert len(json.dumps(facts, allow_nan=False)) < 700_000
    for picture in page.locator("[role=img]").all():
        assert picture.get_attribute("aria-label")
    for language, other in (("English", "中文"), ("中文", "English")):
        text = page.locator("body").inner_text()
        assert page.locator("#language").inner_text() == other
        chinese = language == "中文"
        assert ("整体流程" in text) == chinese
        assert ("The whole flow" in text) != chinese
        assert ("滑动均值" in page.locator("#verdict").inner_text()) == chinese
        page.click("#language")
