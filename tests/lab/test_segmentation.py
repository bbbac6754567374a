"""The study of segmentation on scenes made up for it, with a backbone of random weights."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from support import CONFIG
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from rbnorm_cli.main import main
from rbnorm_lab.config import RunConfig
from rbnorm_lab.data import load_data
from rbnorm_lab.errors import UsageError
from rbnorm_lab.evaluate import IGNORED
from rbnorm_lab.models import build_model
from rbnorm_lab.store import Store
from rbnorm_lab.training.loop import Training, frozen_layers
from rbnorm_lab.training.order import Order
from rbnorm_lab.training.recipe import groups_of

STUDY = (
    *("study", "segmentation", "--data", "camvid", "--model", "lraspp-mobilenet-v2"),
    *("--image-size", "48", "--batch-size", "4", "--epochs", "1", "--rates", "0.01"),
    *("--tuning-seeds", "1", "--seeds", "1", "--out", "out"),
)


@pytest.fixture
def scenes(tmp_path):
    """Scenes of 64 x 48: eight to train on, two to validate and to test; the upper third is void.

    Each is darker than the next, below which the left half is class 1 and the right half class 4.
    """
    for part, count in (("train", 8), ("val", 2), ("test", 2)):
        for folder in (part, f"{part}annot"):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
        for i in range(count):
            labels = np.full((48, 64), 4, np.uint8)
            labels[:, :32], labels[:16] = 1, 11
            pixels = np.stack([labels * 20 + 10 * i] * 3, 2)
            Image.fromarray(pixels).save(tmp_path / "camvid" / part / f"{i}.png")
            Image.fromarray(labels).save(tmp_path / "camvid" / f"{part}annot" / f"{i}.png")
    return tmp_path


@pytest.fixture
def weights(monkeypatch):
    """Random weights in the place of ImageNet's, with statistics that are not those of a layer."""

    def state(*_, **__):
        torch.manual_seed(0)
        network = mobilenet_v2()
        for layer in network.modules():
            if isinstance(layer, _BatchNorm):
                nn.init.uniform_(layer.running_var, 0.5, 2)
        return network.state_dict()

    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", state)


def network(norm="bn"):
    return build_model("lraspp-mobilenet-v2", norm, classes=11, channels=3, seed=0)


def test_void_does_not_count_and_masks_fit_their_images(scenes):
    data = load_data("camvid", scenes, image_size=48)
    images, labels = data.test.__getitems__([0, 1])
    assert images.shape == (2, 3, 48, 64)
    assert labels.shape == (2, 48, 64)
    assert labels[:, :16].unique().tolist() == [IGNORED]
    assert labels[:, 16:].unique().tolist() == [1, 4]
    std = torch.tensor(data.std).view(3, 1, 1)
    mean = torch.tensor(data.mean).view(3, 1, 1)
    shades = 255 * (images * std + mean)[:, 0, 16:]
    torch.testing.assert_close(shades[0], labels[0, 16:] * 20.0, rtol=0, atol=1e-3)


def test_a_mask_is_mirrored_with_its_image(scenes):
    data = load_data("camvid", scenes, image_size=48)
    torch.manual_seed(0)
    images, labels = data.train.__getitems__([0] * 16)
    left = labels[:, 40, 0]
    assert sorted(left.unique().tolist()) == [1, 4]
    brightness = images[:, 0, 40, 0]
    assert (brightness[left == 4].min() > brightness[left == 1].max()).item()


def test_rates_are_chosen_on_the_scenes_for_validation(scenes):
    data = load_data("camvid", scenes, image_size=48, held_out=True, limit=5)
    assert (data.size, len(data.test)) == (5, 2)
    assert data.train.indices == sorted(data.train.indices)


@pytest.mark.parametrize("part", ["train", "testannot"])
def test_what_is_missing_is_named(scenes, part):
    for file in (scenes / "camvid" / part).iterdir():
        file.unlink()
    with pytest.raises(UsageError, match=f"camvid/{part}"):
        load_data("camvid", scenes)


def test_every_pixel_has_a_score(weights):
    assert network().eval()(torch.zeros(2, 3, 48, 64)).shape == (2, 11, 48, 64)


def test_rbn_starts_from_the_function_of_the_pretrained_network(weights):
    images = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    expected, converted = (network(n).eval()(images) for n in ("bn", "rbn:preserve=yes"))
    torch.testing.assert_close(converted, expected, rtol=1e-3, atol=1e-4)


def test_weights_that_cannot_be_had_say_where_to_put_them(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", unreachable)
    with pytest.raises(UsageError, match="checkpoints"):
        network()


def test_frozen_statistics_stay_and_those_of_new_layers_do_not(weights, scenes):
    data = load_data("camvid", scenes, image_size=48)
    config = RunConfig(
        *("camvid", "lraspp-mobilenet-v2", "bn", 4, 0, 1, 0.01, 0.0), frozen=True, trace=False
    )
    model = network()
    own = len(frozen_layers(model))
    assert own == sum(isinstance(layer, _BatchNorm) for layer in model.modules()) - 1
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = Training(model, config, data, Accelerator(cpu=True), groups_of)
    training.fit()
    assert training.module.training
    for name, value in training.module.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            assert torch.equal(value, before[name]) == (not name.startswith("head")), name
    assert not torch.equal(model.low[0][0].weight, before["low.0.0.weight"])


def test_images_in_order_come_so_in_every_epoch():
    config = RunConfig(**{**CONFIG.to_dict(), "batch_size": 2, "in_order": True})
    drawn = [draw.indices for draw in Order(config, 5, 0, range(4))]
    assert drawn == [[0, 1], [2, 3], [0, 1], [2, 3]]


def test_the_study_runs_once_and_answers_in_mean_iou(weights, scenes, monkeypatch, capsys):
    monkeypatch.chdir(scenes)
    assert main([*STUDY, "--data-root", "."]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Mean IoU: " in said or "mean IoU: " in said
    assert "accuracy on clean" not in said
    out = scenes / "out"
    assert not Store(out).failures
    done = Store(out).records
    assert {r.config.norm for r in done.values()} == {"bn", "rbn:preserve=yes", "gn"}
    frozen = [run.config.held_out for run in done.values() if run.config.frozen]
    assert sorted(frozen) == [False, False, True]  # shuffled, in video order, and its rate
    assert main([*STUDY, "--data-root", "."]) == 0
    assert "Nothing left to run" in capsys.readouterr().out
    assert Store(out).records.keys() == done.keys()
    assert "mean IoU" in (out / "segmentation" / "report.html").read_text()


def test_the_study_of_segmentation_is_refused_on_images_of_one_class(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "segmentation", "--data", "digits", "--out", "out"]) == 2
    assert "--data camvid --model lraspp-mobilenet-v2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
