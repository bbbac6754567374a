"""The study of location: which layers re-estimating helps, and what the records say of it."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from rbnorm_cli.main import main
from rbnorm_lab.location.answer import correlation, located, verdict
from rbnorm_lab.location.measure import each_re_estimated, location, measured, re_estimated
from rbnorm_lab.models import build_model


@pytest.fixture
def planted():
    """A network whose accuracy hangs on its first layer alone; the shift enters there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    x = torch.randn(40, 2, 4, 4)
    labels = torch.arange(40) % 2
    x[torch.arange(40), labels] += 3
    model.train()
    for _ in range(60):
        model(x)
    first = [(x, labels)]
    return model.eval(), first, [(x - torch.tensor([8.0, 0.0]).view(2, 1, 1), labels)]


def test_the_layer_where_a_shift_enters_wins_it_back(planted) -> None:
    model, first, second = planted
    records = location(model, first, second, "planted")
    layers = {r["layer"]: r for r in records if r["kind"] == "layer"}
    named = next(r for r in records if r.get("choice") == "named")
    assert named["layers"] == ["0"]
    assert named["clean_accuracy"] == 1
    assert layers["0"]["gain"] == pytest.approx(1 - named["accuracy"], abs=1e-9)
    assert layers["0"]["loss_gain"] > layers["2"]["loss_gain"]
    assert layers["0"]["own_shift"] > 1 > layers["2"]["own_shift"]


def test_a_gain_is_measured_on_the_same_images(planted) -> None:
    model, _, second = planted
    before, after = measured(model, second), re_estimated(model, second, ["0"])
    with torch.no_grad():
        scores = model(second[0][0])
    assert before[0] == pytest.approx((scores.argmax(1) == second[0][1]).double().mean().item())
    loss = nn.functional.cross_entropy(scores.double(), second[0][1]).item()
    assert before[1] == pytest.approx(loss, abs=1e-6)
    assert after != before


def test_one_pass_gives_the_statistics_of_every_layer_alone(planted) -> None:
    model, _, second = planted
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, after in each_re_estimated(model, second, ["0", "2"]):
        assert after == pytest.approx(re_estimated(model, second, [name]), abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_correlation_is_spearmans() -> None:
    layers = [{"own_shift": float(i), "loss_gain": float(i * i)} for i in range(12)]
    found = correlation(layers, "own_shift")
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))
    reverse = [{**layer, "loss_gain": -layer["loss_gain"]} for layer in layers]
    assert correlation(reverse, "own_shift").value == pytest.approx(-1)


def test_records_become_a_verdict(planted) -> None:
    model, first, second = planted
    found = located(location(model, first, second, "planted"))
    assert [one.condition for one in found] == ["planted"]
    assert "1 conditions" in verdict(found).en
    assert verdict([]).en == "Not run."


def test_the_command_continues_and_prints_what_the_records_say(tmp_path, capsys) -> None:
    torch.manual_seed(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    model = build_model("cifar-resnet8", "bn", classes=2, channels=3, seed=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    options = ["--images", str(tmp_path / "images"), "--model", "cifar-resnet8"]
    options += ["--weights", str(tmp_path / "w.safetensors"), "--image-size", "32"]
    options += ["--out", str(tmp_path / "out")]
    assert main(["study", "location", *options, "--conditions", "contrast:5"]) == 0
    path = tmp_path / "out" / "location.jsonl"
    once = path.read_text()
    assert main(["study", "location", *options, "--conditions", "contrast:5", "noise:3"]) == 0
    assert path.read_text().startswith(once)
    conditions = [json.loads(line)["condition"] for line in path.read_text().splitlines()]
    assert set(conditions) == {"contrast:5", "noise:3"}
    assert "Rank correlation of a layer's own shift" in capsys.readouterr().out
    both = path.read_bytes()
    other = [*options, "--limit", "4", "--conditions", "contrast:5"]
    assert main(["study", "location", *other]) == 2
    assert "has contrast:5 of another network, other images or" in capsys.readouterr().err
    assert path.read_bytes() == both
    path.write_text("".join(both.decode().splitlines(keepends=True)[:5]))
    assert main(["study", "location", *options, "--no-run"]) == 2
    assert "has a condition without 'named': remove its lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--limit", "0"), "limit must be at least 1, not 0"),
        (("--image-size", "-1"), "image size must be at least 1, not -1"),
        (("--device", "tpu"), "device 'tpu' cannot be had here"),
        (("--kept", "broken.safetensors"), "broken.safetensors is no network that study domains"),
    ],
)
def test_what_cannot_be_run_is_refused(option, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    assert main(["study", "location", "--images", str(tmp_path), *option]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_what_is_no_corruption_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "a" / "0.png")
    model = build_model("cifar-resnet8", "bn", classes=1, channels=3, seed=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    options = ["--images", str(tmp_path / "images"), "--model", "cifar-resnet8"]
    options += ["--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "out")]
    assert main(["study", "location", *options, "--conditions", "fog"]) == 2
    assert "unknown corruption 'fog'" in capsys.readouterr().err
