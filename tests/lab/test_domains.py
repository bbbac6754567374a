"""A pretrained network fine-tuned on domains: what is run and measured, and the whole study."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import VIEWPORTS, assert_fits, opened

from rbnorm_cli.main import main
from rbnorm_lab.checkpoints import load_model
from rbnorm_lab.config import RunConfig
from rbnorm_lab.domains.images import load_domains, unchanged
from rbnorm_lab.domains.run import Weights, own_parts, pretrained
from rbnorm_lab.domains.testing import accuracies
from rbnorm_lab.errors import UsageError
from rbnorm_lab.models import build_model
from rbnorm_lab.store import Store
from rbnorm_lab.train import train_run
from rbnorm_lab.training.order import Augmented, Draw

MODEL = "timm:test_resnet"
RUN = RunConfig(
    *("shapes", MODEL, "bn", 8, 0, 2, 0.01, 1e-4), image_size=32, target="c", trace=False
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three domains of other brightness; the two classes differ in which half is lit."""
    home = tmp_path_factory.mktemp("domains") / "shapes"
    random = np.random.default_rng(0)
    for domain, base in (("a", 20), ("b", 60), ("c", 100)):
        for label, half in (("top", slice(0, 20)), ("bottom", slice(20, 40))):
            to = home / domain / label
            to.mkdir(parents=True)
            for i in range(12):
                pixels = random.integers(base, base + 40, (40, 40, 3), dtype=np.uint8)
                pixels[half] += 100
                Image.fromarray(pixels).save(to / f"{i:02}.png")
    return home


@pytest.fixture(scope="module")
def images(folder):
    return load_domains(folder, 32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    model = build_model(MODEL, "bn", classes=9, channels=3, seed=5).train()
    for _ in range(20):  # statistics that are not those of a new layer
        model(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    torch.save(model.state_dict(), path)
    return path


def test_a_target_is_neither_trained_on_nor_held_out(images):
    train, source, target = (
        getattr(images, part)("b") for part in ("training", "source_test", "target_test")
    )
    assert len(train) == 44
    assert len(source) == 4
    assert len(target) == 24
    assert set(images.domain_of[torch.cat((train, source))].tolist()) == {0, 2}
    assert set(images.domain_of[target].tolist()) == {1}
    assert not set(train.tolist()) & set(source.tolist())


def test_images_are_standardised_and_keep_their_order(images):
    chosen = torch.tensor([5, 0, 30])
    ((batch, labels),) = unchanged(images, chosen)
    expected = (images.images[chosen].double() / 255 - 0.485) / 0.229
    torch.testing.assert_close(batch[:, 0].double(), expected[:, 0], rtol=0, atol=1e-5)
    assert labels.tolist() == images.labels[chosen].tolist()


def test_augmentation_is_a_crop_that_a_seed_determines(images):
    chosen = images.training("a")[:16]
    drawn = Augmented(images.without("a").train)
    (first, labels), (again, _), (other, _) = (
        drawn[Draw(list(range(16)), seed)] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(labels, images.labels[chosen])
    ((plain, _),) = unchanged(images, chosen)
    assert first.amin() >= plain.amin() - 1e-5
    assert first.amax() <= plain.amax() + 1e-5


@pytest.mark.parametrize("norm", ["bn", "rbn:preserve=yes"])
def test_testing_leaves_the_model_as_it_is(images, weights, norm):
    model = pretrained(replace(RUN, norm=norm), 2, Weights(MODEL, weights))
    before = copy.deepcopy(model.state_dict())
    found = accuracies(model, images, images.target_test("c"), remedies=True)
    assert len(found) == 9
    assert all(0 <= value <= 1 for value in found.values())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_conversion_keeps_the_pretrained_function(images, weights):
    read = Weights(MODEL, weights)
    bn, rbn = (pretrained(replace(RUN, norm=n), 2, read) for n in ("bn", "rbn:preserve=yes"))
    ((batch, _),) = unchanged(images, torch.arange(4))
    torch.testing.assert_close(rbn.eval()(batch), bn.eval()(batch), rtol=1e-4, atol=1e-4)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"the weights are not those of timm:test_resnet"):
        pretrained(RUN, 2, Weights(MODEL, tmp_path / "w.pth"))


def tuned(run, images, weights):
    models, own = [], own_parts(run, images, Weights(MODEL, weights))
    record = train_run(run, images.without(run.target), on_trained=models.append, **own)
    return models[0], record


def test_frozen_statistics_stay(images, weights):
    kept, moved = (
        tuned(run, images, weights)[0].state_dict()["bn1.running_mean"]
        for run in (replace(RUN, frozen=True), RUN)
    )
    assert torch.equal(kept, Weights(MODEL, weights).state["bn1.running_mean"])
    assert not torch.equal(moved, kept)


def test_fine_tuning_repeats_itself_learns_and_is_tested_on_the_target(images, weights):
    run = replace(RUN, norm="rbn:preserve=yes", calibration_rate=30.0, epochs=6, shift="trained")
    (model, record), (again, other) = (tuned(run, images, weights) for _ in range(2))
    assert record.epochs[-1].train_loss == other.epochs[-1].train_loss < 0.6
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert max(p.abs().max() for n, p in model.named_parameters() if "center_weight" in n) > 1e-3
    expected = accuracies(model, images, images.target_test("c"), remedies=False)
    assert record.shifted == {"trained": {"c": expected["trained"]}}
    assert record.accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)  # of four held-out images


def study(folder, weights, out, *more):
    return main(
        [
            "study", "domains", "--images", str(folder), "--weights", str(weights),
            "--model", MODEL, "--image-size", "32", "--seeds", "1", "--few-seeds", "1",
            "--epochs", "1", "--batch-size", "8", "--rates", "0.01", "--calibration-rates", "10",
            "--out", str(out), *more,
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def ran(folder, weights, tmp_path_factory):
    """The folder of a study of one target."""
    out = tmp_path_factory.mktemp("study") / "out"
    assert study(folder, weights, out, "--targets", "c", "--keep-models") == 0
    return out


def test_the_study_runs_keeps_its_model_and_has_nothing_left(ran, folder, weights, capsys):
    records = list(Store(ran).records.values())
    assert len(records) == 7  # with one rate BN at the rate of RBN is the run of BN itself
    (kept,) = ran.glob("*.safetensors")
    assert kept.name == "bn-c-seed0.safetensors"
    assert load_model(str(kept), None, classes=2, channels=3)
    assert {r.facts["images"] for r in records} == {load_domains(folder, 32).digest}
    tested = {len(r.shifted) for r in records if r.config.norm == "rbn:preserve=yes"}
    assert tested == {0, 9}
    page = (ran / "domains" / "report.html").read_text()
    assert study(folder, weights, ran, "--targets", "c") == 0
    assert "Nothing left to run" in capsys.readouterr().out
    assert study(folder, weights, ran, "--no-run", "--targets", "c") == 0
    assert "domains: " in capsys.readouterr().out
    assert (ran / "domains" / "report.html").read_text() == page


@pytest.mark.parametrize("viewport", VIEWPORTS)
def test_nothing_of_the_page_is_off_it_or_scrolls_sideways(ran, browser, viewport):
    page = opened(browser, ran / "domains" / "report.html", viewport)
    assert page.locator("#arms-target tbody tr").count() == 5 * (1 + 1)
    assert "全部目标域" in page.content()
    assert_fits(page)
    assert page.errors == []
    page.close()


def test_bad_input_is_refused(folder, weights, tmp_path, capsys):
    assert study(tmp_path / "none", weights, tmp_path) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert study(folder, weights, tmp_path, "--targets", "d") == 2
    assert "unknown domain 'd': choose from a, b, c" in capsys.readouterr().err
    assert study(folder, weights, tmp_path, "--device", "cuda:99") == 2
    assert "device 'cuda:99' is not available here" in capsys.readouterr().err
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    assert study(folder, tmp_path / "broken.safetensors", tmp_path) == 2
    assert "broken.safetensors" in capsys.readouterr().err
    (tmp_path / "odd" / "a" / "x").mkdir(parents=True)
    assert study(tmp_path / "odd", weights, tmp_path) == 2
    assert "must hold DOMAIN/CLASS/IMAGE" in capsys.readouterr().err
