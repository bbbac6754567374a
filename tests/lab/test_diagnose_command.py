"""``rbnorm diagnose``: models that a comparison trained, other models, bad usage, and the page."""

import json
import math

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from support import VIEWPORTS, assert_fits, opened, run

import rbnorm
from rbnorm_cli.main import main
from rbnorm_lab.checkpoints import load_model, read_saved
from rbnorm_lab.corruptions import corrupt
from rbnorm_lab.data import load_data
from rbnorm_lab.models import build_model
from rbnorm_lab.names import class_names
from rbnorm_lab.subject import relabelled


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
    extra = ("--shifted", "contrast:4", "--limit", "200", "--batch-size", "50")
    done = run("diagnose", "--model", models["rbn"], *extra, "--out", "d", cwd=models["folder"])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    measured = "Measured on 200 images of the first data and 200 of the second: 9 Representative"
    assert done.stdout.index("The second data costs") < done.stdout.index(measured)
    assert "RBN was not tried" not in done.stdout  # it is one
    assert done.stdout.rstrip().endswith("Report: d/report.html")
    return models["folder"] / "d"


@pytest.fixture(scope="module")
def found(out):
    return json.loads((out / "diagnosis.json").read_text())


def test_the_file_has_the_remedies_and_where_it_comes_from(out, found):
    assert sorted(path.name for path in out.iterdir()) == ["diagnosis.json", "report.html"]
    rows = found["remedies"]["remedies"]
    assert rows[0]["remedy"] == "as it is"
    assert rows[0]["accuracy_first"] > rows[0]["accuracy_second"]
    assert {row["kind"] for row in rows} >= {"re-estimated", "test-batch", "mixed"}
    assert "--shifted contrast:4" in found["command"]
    assert torch.__version__.startswith(found["environment"]["torch"])


def test_a_kept_model_is_the_trained_one(models):
    saved = read_saved(models["rbn"])
    records = (models["folder"] / "out" / "records.jsonl").read_text().splitlines()
    record = next(r for r in map(json.loads, records) if r["config"]["norm"] == "rbn")
    assert saved.config.key == record["key"]
    model = load_model(str(models["rbn"]), None, classes=0, channels=0)
    weights = [m.center_weight for m in model.modules() if hasattr(m, "center_weight")]
    expected = [layer["center_weight"]["mean"] for layer in record["calibration"].values()]
    assert [w.double().mean().item() for w in weights] == pytest.approx(expected)


def test_the_numbers_are_those_of_the_library_on_both_data_sets(models, found):
    model = load_model(str(models["rbn"]), None, classes=0, channels=0)
    data = load_data("digits")
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:200]
    mean, std = data.mean[0], data.std[0]
    raw = data.test.tensors[0][order]
    first, second = (
        ((x - mean) / std).split(50) for x in (raw, corrupt(raw, "contrast", 4, seed=0))
    )
    expected = rbnorm.diagnose(model, first, shifted=second)
    layers = found["layers"] + found["shifted"]["layers"]
    for layer, own in zip(layers, expected.layers + expected.shifted.layers, strict=True):
        assert layer["layer"] == own.layer
        for name, value in own.values.items():
            written = math.nan if layer[name] is None else layer[name]
            assert written == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), name
    assert found["images"]["moved"] == expected.images.moved == "contrast"
    assert found["shifted"]["layers"][0]["var_below"] > 0.5 > found["layers"][0]["var_below"]


def test_the_same_command_again_finds_the_same(models, tmp_path):
    arguments = ["diagnose", "--model", str(models["bn"]), "--limit", "60", "--shifted", "noise"]
    found = []
    for name in ("a", "b"):
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
        found.append(json.loads((tmp_path / name / "diagnosis.json").read_text()))
        del found[-1]["command"]
        for row in found[-1]["remedies"]["remedies"]:
            del row["seconds"]
    assert found[0] == found[1]


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
    options += [] if name.endswith((".py", ".pt")) else ["--random"]
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
    "--model resnet81 --random": "unknown model 'resnet81': did you mean",
    "--model missing.pt": "--model missing.pt: there is no such file",
    "--model broken.py": "broken.py did not make a model (no)",
    "--model broken.pt": "broken.pt cannot be read",
    "--model broken.safetensors": "broken.safetensors cannot be read",
    "--model weights.pt": "weights.pt holds a dict and no model: weights belong to --checkpoint",
    "--model plain.py": "must have a BatchNorm, SyncBatchNorm, timm norm-act or RBN layer",
    "--model fails.py": "cannot be diagnosed: the model failed on batch 1, after layer '1' (",
    "--model cifar-resnet8 --checkpoint missing.pt": "missing.pt cannot be read",
    "--model cifar-resnet8": "cifar-resnet8 has no weights yet, and a diagnosis of random",
    "--model cifar-resnet8 --random --pretrained": "give one of --checkpoint, --pretrained and",
    "--model cifar-resnet8 --random --fine-tune 3": "--fine-tune needs --shifted",
    "--model cifar-resnet8 --random --classes 0": "classes must be at least 1, not 0",
    "--model cifar-resnet8 --random --classes list.txt": "--classes list.txt cannot be read",
    "--model cifar-resnet8 --random --classes plain.py": "names the classes of an image folder",
    "--model cifar-resnet8 --pretrained": "cannot be had",
    "--model cifar-resnet8 --checkpoint weights.pt": "weights.pt does not fit the model",
    "--model cifar-resnet8 --checkpoint list.pt": "list.pt holds no state dict",
    "--model cifar-resnet8 --random --data mnist": "unknown data 'mnist'",
    "--model cifar-resnet8 --random --shifted fog": "unknown data of --shifted 'fog': choose",
    "--model cifar-resnet8 --random --shifted blur:6": "unknown severity 6 of blur: choose",
    "--model cifar-resnet8 --random --shifted cifar10 --data-root .": "CIFAR10 is not in . and",
    "--model cifar-resnet8 --random --limit 0": "limit must be at least 1, not 0",
    "--model cifar-resnet8 --random --batch-size 0": "batch size must be at least 1, not 0",
    "--model cifar-resnet8 --random --device tpu": "device 'tpu' is not available here",
    "--model cifar-resnet8 --random --out weights.pt": "weights.pt is a file",
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


def test_the_page_is_one_file_below_four_megabytes_that_fits(page, out):
    assert (out / "report.html").stat().st_size < 4_000_000
    others = [url for url in page.requests if not url.startswith("data:")]
    assert len(others) == 1
    assert_fits(page)


def test_the_page_shows_the_numbers_of_the_chosen_layer_and_channel(page, found):
    layer = found["layers"][6]
    page.select_option("#layer", label=layer["layer"])
    page.select_option("#channel", label="5")
    for name in ("mean_offset", "var_below", "between_share", "center_weight", "gain"):
        expected = [layer[name], layer["per_channel"][name][5]]
        assert shown(page, name) == pytest.approx(expected, rel=6e-3, abs=1e-9), name
    assert shown(page, "center_damps") == [pytest.approx(layer["center_damps"], rel=6e-3)]


def test_the_figures_have_the_numbers_of_the_file(page, found):
    layers = found["layers"]
    rows = page.locator("#heat tbody tr")
    for i, layer in enumerate(layers):
        name, *cells = rows.nth(i).locator("td").all_inner_texts()
        shares = ("mean_below", "mean_above", "var_below", "var_above", "between_share")
        assert name == layer["layer"]
        assert [int(cell) for cell in cells[:5]] == pytest.approx(
            [100 * layer[share] for share in shares], abs=0.51
        )
    page.select_option("#parameter", "gate_mean")
    medians = page.evaluate("document.getElementById('ridges').data[2].x")
    expected = [float(np.median(layer["per_channel"]["gate_mean"])) for layer in layers]
    assert medians == pytest.approx(expected, rel=1e-3)
    even = page.evaluate("document.getElementById('evenness').data[0].y")
    assert even == pytest.approx([layer["output_mean_std"] for layer in layers], rel=1e-3)


def test_the_heat_map_shows_either_data_and_chooses_a_layer(page, found):
    page.select_option("#which", "second")
    cells = [row.locator("td").all_inner_texts() for row in page.locator("#heat tbody tr").all()]
    expected = [round(100 * layer["var_below"]) for layer in found["shifted"]["layers"]]
    assert [int(row[3]) for row in cells] == pytest.approx(expected, abs=0.51)
    page.select_option("#which", "first")
    page.locator("#heat tbody button").nth(4).click()
    chosen = page.locator("#layer option:checked").inner_text()
    assert chosen == found["layers"][4]["layer"]
    assert shown(page, "mean_above")[0] == pytest.approx(found["layers"][4]["mean_above"], rel=6e-3)


def test_the_page_says_what_was_found(page):
    figures = page.locator("#extremes figure")
    assert figures.count() >= 3  # a case that no image is in has none
    for i in range(figures.count()):
        assert figures.nth(i).locator("img").count() == 3
    body = page.locator("body").text_content()
    for text in (
        "Measured on 200 images of the first data and 200 of the second: 9 Representative",
        "(the paper: representative features are removed); most of the second data in",
        "--shifted contrast:4",
    ):
        assert text in body


_RUNNING_MEAN = ("低于滑动均值", "below the running mean")


def test_the_page_speaks_chinese_on_a_phone(out, browser):
    with browser.new_context(viewport={"width": 390, "height": 800}, locale="zh-CN") as context:
        page = context.new_page()
        page.goto((out / "report.html").as_uri())
        page.wait_for_selector("body[data-ready]", state="attached")
        name = page.locator("#heat tbody td").first.bounding_box()
        assert name["width"] > 60  # not a letter a line
        assert name["height"] < 60
        for said, other in ((0, 1), (1, 0)):
            body = page.locator("body").inner_text()
            assert _RUNNING_MEAN[said] in body
            assert _RUNNING_MEAN[other] not in body
            page.click("#language")


def test_a_page_without_rbn_and_remedies_opens_on_the_layer_that_is_most_off(
    models, tmp_path, browser
):
    options = ["--limit", "20", "--shifted", "contrast", "--no-remedies", "--out", str(tmp_path)]
    assert main(["diagnose", "--model", str(models["bn"]), *options]) == 0
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert "remedies" not in found
    cases = ("mean_below", "mean_above", "var_below", "var_above")
    worst = max(found["layers"], key=lambda layer: sum(layer[case] for case in cases))["layer"]
    page = opened(browser, tmp_path / "report.html", "desktop")
    page.wait_for_selector("body[data-ready]", state="attached")
    assert page.locator("#layer option:checked").inner_text() == worst
    assert page.locator('#heat tr[aria-selected="true"] button').inner_text() == worst
    assert not page.locator("#calibration").is_visible()
    assert page.errors == []
    page.close()


def test_the_table_shows_the_remedies_of_the_file(page, found):
    rows = page.locator("#remedies tbody tr")
    wanted = found["remedies"]["remedies"]
    assert rows.count() == len(wanted)
    best = max(range(len(wanted)), key=lambda i: wanted[i]["accuracy_second"])
    text = rows.nth(best).inner_text()
    assert f"{100 * wanted[best]['accuracy_second']:.1f}" in text
    marked = page.locator("#remedies tr.best")
    assert marked.count() <= 1
    if marked.count():  # the one that the verdict names
        name = marked.locator("td").first.inner_text().partition(" α")[0].strip()
        assert f"Best: {name}:" in page.locator("#verdict").inner_text()


def test_fine_tuning_is_tried_on_the_training_images(models, tmp_path):
    options = ["--limit", "20", "--shifted", "contrast:5", "--fine-tune", "2"]
    assert main(["diagnose", "--model", str(models["bn"]), *options, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    names = [row["remedy"] for row in found["remedies"]["remedies"]]
    assert "fine-tuned as it is, 2 steps" in names
    assert "fine-tuned converted to RBN, 2 steps" in names


@pytest.fixture
def folder(tmp_path):
    """One image a class, the classes called as ImageNet calls them, in no order of the file."""
    for i, name in enumerate(("n01", "n02", "n03")):
        (tmp_path / "images" / name).mkdir(parents=True)
        pixels = np.full((40, 40, 3), 80 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name / "0.png")
    (tmp_path / "classes.txt").write_text("n03\nn00\nn01\nn02\n")
    return tmp_path


def of_a_folder(images, *options):
    model = ["--model", "torchvision:resnet18", "--random", "--image-size", "32"]
    data = ["--data", f"imagefolder:{images}", "--out", str(images.parent / "d")]
    return main(["diagnose", *model, *data, *options])


def test_a_folder_with_one_image_a_class_is_diagnosed_as_a_whole(folder, capsys):
    classes = str(folder / "classes.txt")
    assert of_a_folder(folder / "images", "--classes", classes) == 0, capsys.readouterr().err
    (folder / "set").mkdir()
    (folder / "images").rename(folder / "set" / "val")  # for evaluation alone
    assert of_a_folder(folder / "set", "--classes", "3") == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count("Measured on 3 images") == 2


def test_classes_are_found_by_the_names_of_a_file(folder, capsys):
    name = f"imagefolder:{folder / 'images'}"
    data = load_data(name, image_size=32, evaluation=True)
    images = relabelled(name, data.test, class_names(folder / "classes.txt"))
    assert sorted(label for _, label in images) == [0, 2, 3]
    assert data.classes == 3
    (folder / "classes.txt").write_text("n01\nn02\n")
    assert of_a_folder(folder / "images", "--classes", str(folder / "classes.txt")) == 2
    assert "the class 'n03' of imagefolder:" in capsys.readouterr().err


WRAPPED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1), nn.Linear(64, 10)

    def forward(self, x):
        scores = self.head(self.norm(x).flatten(1))
        return {output}

def model():
    torch.manual_seed(0)
    return Net()
"""


def test_a_model_that_returns_a_dictionary_is_diagnosed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(WRAPPED.replace("{output}", '{"logits": scores}'))
    options = ["--data", "digits", "--shifted", "contrast", "--limit", "40"]
    assert main(["diagnose", "--model", "net.py", *options]) == 0
    found = json.loads((tmp_path / "rbnorm-diagnosis" / "diagnosis.json").read_text())
    names = [row["remedy"] for row in found["remedies"]["remedies"]]
    assert any("TENT" in name for name in names)
    assert 0 <= found["remedies"]["remedies"][0]["accuracy_first"] <= 1


def test_a_model_without_scores_is_diagnosed_without_remedies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(WRAPPED.replace("{output}", "[scores]"))
    options = ["--data", "digits", "--shifted", "contrast", "--limit", "40"]
    assert main(["diagnose", "--model", "net.py", *options]) == 2
    assert "has no scores of classes, by which remedies are compared" in capsys.readouterr().err
    assert not (tmp_path / "rbnorm-diagnosis").exists()
    assert main(["diagnose", "--model", "net.py", *options, "--no-remedies"]) == 0
