"""``rbnorm diagnose``: models that a comparison trained, other models, bad usage, and the page."""

import json
import math

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from support import VIEWPORTS, opened, run

import rbnorm
from rbnorm.lab import diagnose as command
from rbnorm.lab.checkpoints import load_model, read_saved
from rbnorm.lab.corruptions import corrupt
from rbnorm.lab.models import build_model
from rbnorm_cli.main import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """BatchNorm and RBN trained on digits by a comparison that keeps its models."""
    folder = tmp_path_factory.mktemp("compare")
    arguments = ("--norms", "bn,rbn", "--batch-sizes", "32", "--seeds", "1", "--epochs", "2")
    out = ("--limit", "320", "--save-models", "--out", str(folder / "out"))
    assert main(["compare", *arguments, *out]) == 0
    bn, rbn = sorted((folder / "out" / "models").iterdir())
    return {"bn": bn, "rbn": rbn, "folder": folder}


@pytest.fixture(scope="module")
def out(models):
    """The diagnosis of the RBN model, with everything it can have."""
    extra = ("--shifted", "contrast:4", "--counterfactuals", "--limit", "200", "--batch-size", "50")
    done = run("diagnose", "--model", models["rbn"], *extra, "--out", "d", cwd=models["folder"])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Measured on 200 images: 9 RepresentativeBatchNorm2d." in done.stdout
    assert done.stdout.rstrip().endswith("Report: d/report.html")
    return models["folder"] / "d"


@pytest.fixture(scope="module")
def found(out):
    return json.loads((out / "diagnosis.json").read_text())


def test_it_leaves_these_files_and_no_others(out):
    assert sorted(path.name for path in out.iterdir()) == ["diagnosis.json", "report.html"]


def test_a_kept_model_is_the_trained_one(models):
    saved = read_saved(models["rbn"])
    records = (models["folder"] / "out" / "records.jsonl").read_text().splitlines()
    record = next(r for r in map(json.loads, records) if r["config"]["norm"] == "rbn")
    assert saved.config.key == record["key"]
    model = load_model(str(models["rbn"]), None, classes=0, channels=0)
    weights = [m.center_weight for m in model.modules() if hasattr(m, "center_weight")]
    expected = [layer["center_weight"]["mean"] for layer in record["calibration"].values()]
    assert [w.double().mean().item() for w in weights] == pytest.approx(expected)


def test_a_comparison_that_lacks_a_model_runs_it_again(tmp_path):
    arguments = ["compare", "--norms", "bn", "--batch-sizes", "32", "--seeds", "1", "--epochs", "1"]
    arguments += ["--limit", "64", "--out", str(tmp_path)]
    assert main(arguments) == 0
    records = (tmp_path / "records.jsonl").read_bytes()
    assert not (tmp_path / "models").exists()
    assert main([*arguments, "--save-models"]) == 0
    assert (tmp_path / "records.jsonl").read_bytes() == records
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_the_numbers_are_those_of_the_library(models, found):
    model = load_model(str(models["rbn"]), None, classes=0, channels=0)
    data = command.load_data("digits")
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:200].tolist()
    batches = [data.test.__getitems__(order[i : i + 50]) for i in range(0, 200, 50)]
    expected = rbnorm.diagnose(model, batches)
    for layer, own in zip(found["layers"], expected.layers, strict=True):
        assert layer["layer"] == own.layer
        for name, value in own.values.items():
            written = math.nan if layer[name] is None else layer[name]
            assert written == pytest.approx(value, rel=1e-5, abs=1e-7, nan_ok=True), name


def test_counterfactuals_start_from_the_model_itself(found):
    first = found["counterfactuals"][0]
    assert (first["layer"], first["without"]) == (None, "nothing")
    assert first["accuracy"] > 0.5
    assert len(found["counterfactuals"]) == 1 + 2 * (1 + 9)


def test_the_second_data_set_is_the_corrupted_images(models, found):
    model = load_model(str(models["rbn"]), None, classes=0, channels=0)
    data = command.load_data("digits")
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:200]
    mean, std = data.mean[0], data.std[0]
    raw = data.test.tensors[0][order]
    images = (corrupt(raw, "contrast", 4, seed=0) - mean) / std
    labels = data.test.tensors[1][order]
    batches = [((raw - mean) / std, labels)]
    expected = rbnorm.diagnose(model, batches, shifted=[(images, labels)])
    assert found["ranking"] == [layer.layer for layer in expected.ranking()]
    for layer, own in zip(found["layers"], expected.layers, strict=True):
        for name in ("mean_shift", "log_var_shift", "shift"):
            assert layer[name] == pytest.approx(own.values[name], rel=1e-3, abs=1e-5), name
    first = found["layers"][0]
    assert found["shifted"]["layers"][0]["var_below"] > 0.5 > first["var_below"]


def test_the_same_command_again_finds_the_same(models, tmp_path):
    arguments = ["diagnose", "--model", str(models["bn"]), "--limit", "60", "--shifted", "noise"]
    for name in ("a", "b"):
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    first, second = ((tmp_path / name / "diagnosis.json").read_bytes() for name in ("a", "b"))
    assert first == second


def test_before_and_after_are_two_trained_models(models, tmp_path):
    arguments = ["diagnose", "--model", str(models["bn"]), "--converted", str(models["rbn"])]
    assert main([*arguments, "--limit", "60", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<td>9 BatchNorm2d</td><td>9 RepresentativeBatchNorm2d</td>" in page


MODELS = {
    "cifar-resnet8": 9,
    "torchvision:resnet18": 20,
    "timm:resnet10t": 14,
    "model.py": 1,
    "model.pt": 9,
}


@pytest.mark.parametrize("name", MODELS)
def test_models_by_name_and_from_files(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(
        "from torch import nn\n\n\ndef model():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())\n"
    )
    torch.save(build_model("cifar-resnet8", "rbn", classes=10, channels=1, seed=0), "model.pt")
    options = ["--image-size", "32", "--limit", "8", "--out", "d", "--shifted", "train"]
    assert main(["diagnose", "--model", name, *options]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "d" / "diagnosis.json").read_text())
    assert len(found["layers"]) == MODELS[name]
    assert all(0 < layer["between_share"] <= 1 for layer in found["layers"])


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(("center", "scale"), [(True, True), (True, False), (False, True)])
def test_weights_of_rbn_make_a_model_of_rbn(center, scale, suffix, tmp_path):
    trained = torchvision.models.resnet18(num_classes=10)
    rbnorm.convert_batchnorm(trained, where="layer4.*", center=center, scale=scale)
    path = tmp_path / f"weights.{suffix}"
    state = trained.state_dict()
    if suffix == "pt":  # as training scripts write it
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        save_file(state, path)
    model = load_model("resnet18", path, classes=10, channels=3)
    assert [repr(m) for m in model.modules()] == [repr(m) for m in trained.modules()]
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


BAD = {
    "--model resnet81": "unknown model 'resnet81': did you mean",
    "--model missing.pt": "--model missing.pt: there is no such file",
    "--model broken.py": "broken.py did not make a model (no)",
    "--model broken.pt": "broken.pt cannot be read",
    "--model broken.safetensors": "broken.safetensors cannot be read",
    "--model weights.pt": "weights.pt holds a dict and no model: weights belong to --checkpoint",
    "--model plain.py": "must have a BatchNorm, SyncBatchNorm, timm norm-act or RBN layer",
    "--model fails.py": "cannot be diagnosed: the model failed on batch 1, after layer '1' (",
    "--model cifar-resnet8 --checkpoint missing.pt": "missing.pt cannot be read",
    "--model cifar-resnet8 --checkpoint weights.pt": "weights.pt does not fit the model",
    "--model cifar-resnet8 --checkpoint list.pt": "list.pt holds no state dict",
    "--model cifar-resnet8 --data mnist": "unknown data 'mnist'",
    "--model cifar-resnet8 --shifted fog": "unknown data of --shifted 'fog': choose from digits, ",
    "--model cifar-resnet8 --shifted blur:6": "unknown severity 6 of blur: choose from 1, 2, 3",
    "--model cifar-resnet8 --shifted cifar10 --data-root .": "CIFAR10 is not in . and cannot be",
    "--model cifar-resnet8 --limit 0": "limit must be at least 1, not 0",
    "--model cifar-resnet8 --batch-size 0": "batch size must be at least 1, not 0",
    "--model cifar-resnet8 --device tpu": "device 'tpu' cannot be had here",
    "--model cifar-resnet8 --out weights.pt": "weights.pt is a file",
    "--limit 3": "required: --model",
}
FILES = {
    "broken.py": "def model():\n    raise ValueError('no')\n",
    "broken.pt": "no pickle",
    "broken.safetensors": "no tensors",
    "plain.py": "from torch import nn\n\n\ndef model():\n    return nn.Conv2d(1, 1, 1)\n",
    "fails.py": "from torch import nn\n\n\ndef model():\n"
    "    return nn.Sequential(nn.Identity(), nn.BatchNorm2d(1), nn.Linear(3, 3))\n",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_usage(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    torch.save({"a": torch.ones(1)}, "weights.pt")
    torch.save([1], "list.pt")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["diagnose", *arguments.split()]) == 2
    written = capsys.readouterr()
    assert BAD[arguments] in written.err
    assert written.err.startswith("rbnorm: ")
    assert written.err.count("\n") == 1
    after = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert sorted(after) == before


@pytest.fixture(scope="module", params=VIEWPORTS)
def page(request, browser, out):
    page = opened(browser, out / "report.html", request.param)
    page.wait_for_selector("body[data-ready]", state="attached")
    yield page
    assert page.errors == []
    page.close()


def shown(page, name):
    """The numbers of a row of the table: of the layer, and of the channel."""
    row = page.locator(f'#numbers tr[data-name="{name}"] td').all_inner_texts()
    return [float(text.replace("−", "-")) for text in row[1:] if text]


def test_the_page_is_one_file_below_ten_megabytes(page, out):
    assert (out / "report.html").stat().st_size < 10_000_000
    others = [url for url in page.requests if not url.startswith("data:")]
    assert len(others) == 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_page_shows_the_numbers_of_the_chosen_layer_and_channel(page, found):
    layer = found["layers"][6]
    page.select_option("#layer", label=layer["layer"])
    page.select_option("#channel", label="5")
    for name in ("mean_offset", "var_below", "between_share", "center_weight", "gain", "shift"):
        expected = [layer[name], layer["per_channel"][name][5]]
        assert shown(page, name) == pytest.approx(expected, rel=6e-3, abs=1e-9), name
    assert shown(page, "gate_inert") == [pytest.approx(layer["gate_inert"], rel=6e-3)]


def test_the_figures_have_the_numbers_of_the_file(page, found):
    layers = found["layers"]
    heat = page.evaluate("document.getElementById('heat').data.map(t => [t.y, t.z])")
    assert heat[0][0] == [layer["layer"] for layer in layers]
    for row, layer in zip(heat[0][1], layers, strict=True):
        names = ("mean_below", "mean_above", "var_below", "var_above", "between_share")
        assert row == pytest.approx([layer[name] for name in names], rel=1e-3)
    page.select_option("#parameter", "gate_mean")
    ridges = page.evaluate("document.getElementById('ridges').data.map(t => t.x)")
    for values, layer in zip(ridges, layers, strict=True):
        assert values == pytest.approx(layer["per_channel"]["gate_mean"], rel=1e-3)
    even = page.evaluate("document.getElementById('evenness').data[0].y")
    assert even == pytest.approx([layer["output_mean_std"] for layer in layers], rel=1e-3)
    bars = page.evaluate("document.getElementById('shift').data[0].y")
    assert bars == found["ranking"]


def test_a_click_on_the_heat_map_chooses_its_layer(page, found):
    page.evaluate(
        "document.getElementById('heat').emit('plotly_click', {points: [{pointIndex: [4, 0]}]})"
    )
    chosen = page.locator("#layer option:checked").inner_text()
    assert chosen == found["layers"][4]["layer"]
    assert shown(page, "mean_above")[0] == pytest.approx(found["layers"][4]["mean_above"], rel=6e-3)


def test_the_page_shows_images_next_to_their_feature_maps(page, found):
    page.select_option("#layer", label="stages.1.0.bn1")
    pictures = page.locator("#maps img")
    headings = [pictures.nth(i).get_attribute("alt") for i in range(pictures.count())]
    assert headings == [
        "the images",
        "normalised, without calibration",
        "after centring",
        "after scaling, times R",
    ]
    for i in range(4):
        assert pictures.nth(i).evaluate("image => image.complete && image.naturalWidth") > 6 * 32
    channel = int(page.locator("#map-channel option:checked").inner_text())
    weights = found["layers"][3]["per_channel"]["center_weight"]
    assert abs(weights[channel]) == max(map(abs, weights))
    assert page.locator("#maps .texts").nth(1).locator("span").count() == 6


def test_the_page_says_what_was_found_and_compared(page, found):
    body = page.locator("body").inner_text()
    for text in (
        "Measured on 200 images: 9 RepresentativeBatchNorm2d.",
        "below the running mean: representative features are removed",
        "reverted to BatchNorm",
        "--shifted contrast:4 --counterfactuals",
    ):
        assert text in body
    rows = page.locator("#counterfactuals tbody tr")
    assert rows.count() == len(found["counterfactuals"])
    accuracy = found["counterfactuals"][0]["accuracy"]
    assert rows.first.inner_text().split() == ["all", "nothing", f"{100 * accuracy:.1f}", "%"]


def test_a_model_without_rbn_has_a_page_too(models, tmp_path, browser):
    options = ["--limit", "20", "--out", str(tmp_path)]
    assert main(["diagnose", "--model", str(models["bn"]), *options]) == 0
    page, errors = browser.new_page(), []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("body[data-ready]", state="attached")
    assert page.locator("#no-calibration").is_visible()
    assert not page.locator("#calibration").is_visible()
    assert "converted to RBN, not yet trained" in page.locator("#conversion").inner_text()
    assert errors == []
    page.close()


def test_a_norm_act_model_is_converted_and_compared(tmp_path):
    torch.save(timm.create_model("resnet10t", num_classes=10, in_chans=1), tmp_path / "m.pt")
    options = ["--limit", "8", "--image-size", "32", "--out", str(tmp_path / "d")]
    assert main(["diagnose", "--model", str(tmp_path / "m.pt"), *options]) == 0
    page = (tmp_path / "d" / "report.html").read_text()
    assert "RepresentativeBatchNormAct2d" in page or "RepresentativeBatchNorm2d" in page
