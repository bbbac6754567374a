"""The study of domains: what is run, what is measured, and what its records say."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import VIEWPORTS, assert_fits, opened
from tolerances import assert_close
from torch import nn

from rbnorm import convert_batchnorm
from rbnorm_cli.main import main
from rbnorm_lab.domains.answer import domains_answer
from rbnorm_lab.domains.config import DomainFailure, DomainRecord, DomainRun
from rbnorm_lab.domains.images import load_domains, unchanged
from rbnorm_lab.domains.plan import ARMS, AT_RATE_OF_RBN, BN, FROZEN, RBN, DomainSettings, Plan
from rbnorm_lab.domains.pool import Pool, Work
from rbnorm_lab.domains.results import DomainResults, blocked
from rbnorm_lab.domains.store import DomainStore
from rbnorm_lab.domains.testing import accuracies, batch_statistics
from rbnorm_lab.domains.training import Weights, fine_tune, pretrained
from rbnorm_lab.errors import UsageError
from rbnorm_lab.models import build_model
from rbnorm_lab.train import steps_of
from rbnorm_lab.training.order import Augmented, Draw

MODEL = "timm:test_resnet"
RUN = DomainRun("shapes", MODEL, "bn", False, "c", 0, 2, 8, 0.01, 1.0, 1e-4, 32, False)
SETTINGS = DomainSettings(
    replace(RUN, epochs=1, weight_decay=0.0), ("a", "b", "c"), 3, 2, 1, (0.1, 0.2), (10.0, 1.0)
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


@pytest.mark.parametrize("norm", ["bn", "rbn"])
def batch_statistics_of_the_test_batch_are_those_of_training(norm):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
    ).double()
    if norm == "rbn":
        net = convert_batchnorm(net)
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.5, 0.3)
    x = torch.randn(12, 3, 9, 9, dtype=torch.float64)
    net.train()
    expected = torch.cat([copy.deepcopy(net)(part) for part in x.split(4)])
    running = net.eval()(x)
    with batch_statistics(net, 4, 0):
        assert_close(net(x), expected, torch.float64)
        with pytest.raises(ValueError, match="10 images cannot be cut into groups of 4"):
            net(x[:10])
    assert torch.equal(net(x), running)
    with batch_statistics(net, 4, 2**40):
        torch.testing.assert_close(net(x), running, rtol=1e-6, atol=1e-6)


def test_mixed_statistics_weigh_the_running_ones_as_images():
    layer = nn.BatchNorm2d(1).eval().double()
    layer.running_mean.fill_(3.0)
    layer.running_var.fill_(5.0)
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    mean, var = (16 * 3 + 4 * x.mean()) / 20, (16 * 5 + 4 * x.var(correction=0)) / 20
    with batch_statistics(nn.Sequential(layer), 4, 16):
        got = layer(x)
    assert_close(got, (x - mean) / (var + layer.eps).sqrt(), torch.float64)


@pytest.mark.parametrize("norm", ["bn", "rbn:preserve=yes"])
def test_testing_leaves_the_model_as_it_is(images, weights, norm):
    model = pretrained(replace(RUN, norm=norm), 2, Weights(MODEL, weights))
    before = copy.deepcopy(model.state_dict())
    found = accuracies(model, images, images.target_test("c"), remedies=True)
    assert len(found) == 9
    assert all(0 <= value <= 1 for value in found.values())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all("forward" not in vars(layer) for layer in model.modules())


def test_conversion_keeps_the_pretrained_function(images, weights):
    read = Weights(MODEL, weights)
    bn, rbn = (pretrained(replace(RUN, norm=n), 2, read) for n in ("bn", "rbn:preserve=yes"))
    ((batch, _),) = unchanged(images, torch.arange(4))
    torch.testing.assert_close(rbn.eval()(batch), bn.eval()(batch), rtol=1e-4, atol=1e-4)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"the weights are not those of timm:test_resnet"):
        pretrained(RUN, 2, Weights(MODEL, tmp_path / "w.pth"))


def test_frozen_statistics_stay(images, weights):
    read = Weights(MODEL, weights)
    model, _ = fine_tune(replace(RUN, frozen=True), images, read)
    trained, _ = fine_tune(RUN, images, read)
    kept, moved = (m.state_dict()["bn1.running_mean"] for m in (model, trained))
    assert torch.equal(kept, read.state["bn1.running_mean"])
    assert not torch.equal(moved, kept)


def test_fine_tuning_repeats_itself_and_learns(images, weights):
    run = replace(RUN, norm="rbn:preserve=yes", calibration_rate=30.0, epochs=6)
    read = Weights(MODEL, weights)
    (model, loss), (again, loss_again) = (fine_tune(run, images, read) for _ in range(2))
    assert loss == loss_again
    assert loss < 0.6
    w_m = [p for name, p in model.named_parameters() if "center_weight" in name]
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert max(p.abs().max() for p in w_m) > 1e-3


def test_an_incomplete_batch_is_left_out(images):
    run = replace(RUN, target="a", epochs=3, batch_size=40)
    assert steps_of(run.training(), images.without("a")) == 3
    with pytest.raises(UsageError, match="batch size 45 is more than the 44 training images"):
        steps_of(replace(run, batch_size=45).training(), images.without("a"))


def record(run, source=0.5, **target):
    return DomainRecord(
        run, 0.1, source, target, {}, {"images": "i", "weights": "w"},
        "cpu", "c++", "channels last",
        {"training": 1.0, "testing": 0.5}, {"torch": "2", "commit": None},
        "2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def test_rates_are_chosen_on_the_source_and_then_runs_follow():
    records = {}

    def done(run, source):
        records[run.key] = record(run, source)

    first = Plan(SETTINGS, records).ready()
    assert all(run.tuning and run.seed == 1000 for run in first)
    assert {run.calibration_rate for run in first if run.norm != "bn"} == {10.0}
    for run in first:
        done(run, run.lr)  # the second rate is the better one
    second = [run for run in Plan(SETTINGS, records).ready() if run.key not in records]
    calibration = [run for run in second if run.tuning]
    assert {(run.lr, run.calibration_rate) for run in calibration} == {(0.2, 1.0)}
    assert {(run.norm, run.frozen) for run in second if not run.tuning} == {
        ("bn", False),
        ("bn", True),
    }
    for run in calibration:
        done(run, 0.9)
    plan = Plan(SETTINGS, records)
    assert plan.rates(RBN, "a") == (0.2, 1.0)
    assert plan.rates(BN, "a") == (0.2, 1.0)
    assert plan.rates(AT_RATE_OF_RBN, "a") == (0.2, 1.0)  # BN has no calibration to train
    seeds = {
        arm.name: {r.seed for r in plan.ready() if r.norm == arm.norm and not r.tuning}
        for arm in (RBN, ARMS[2])
    }
    assert seeds == {"rbn": {0, 1, 2}, "centring only": {0, 1}}


def test_a_failed_choice_counts_as_nothing():
    records, failures = {}, {}
    for run in Plan(SETTINGS, {}).ready():
        if run.lr == 0.2:
            failures[run.key] = None
        else:
            records[run.key] = record(run, 0.1)
    assert Plan(SETTINGS, records, failures).rates(FROZEN, "b") == (0.1, 1.0)


def test_an_interval_with_blocks_pools_the_spread_inside_them():
    found = blocked({"a": [0.1, 0.3], "b": [0.5, 0.7]})
    assert found.mean == pytest.approx(0.4)
    # s^2 = (0.02 + 0.02) / 2, over four values; t(0.975, 2) = 4.302653
    margin = 4.302653 * (0.02 / 4) ** 0.5
    assert found.interval == pytest.approx((0.4 - margin, 0.4 + margin))
    assert blocked({"a": [0.1], "b": [0.7]}).interval is None
    with pytest.raises(ValueError, match="a value in every block"):
        blocked({"a": []})


def test_what_has_been_run_is_not_missing():
    everything = Plan(SETTINGS, {}).total()
    assert Plan(SETTINGS, {}).missing() == everything
    (first, *_) = runs = Plan(SETTINGS, {}).ready()
    left = Plan(SETTINGS, {run.key: record(run) for run in runs[:3]}).missing()
    assert len(left) == len(everything) - 3
    assert first.tuning
    assert left.count((BN, None)) == everything.count((BN, None)) - 3
    assert not Plan(SETTINGS, complete(0.6, 0.5)).missing()


def test_the_first_seeds_of_bn_and_rbn_are_tested_with_other_statistics():
    plan = Plan(SETTINGS, {})
    runs = [SETTINGS.run(arm, "a", seed, 0.1, 1.0) for arm in ARMS for seed in range(3)]
    with_remedies = [(run.norm, run.frozen, run.seed) for run in runs if plan.has_remedies(run)]
    # twice BN: its arm at RBN's rates here has the rates of BN
    assert sorted(set(with_remedies)) == [
        ("bn", False, 0),
        ("bn", False, 1),
        ("rbn:preserve=yes", False, 0),
        ("rbn:preserve=yes", False, 1),
    ]


def complete(rbn, bn):
    """Records of BN and RBN on every target, with choices of rates that all are alike."""
    records = {}
    while missing := [run for run in Plan(SETTINGS, records).ready() if run.key not in records]:
        for run in missing:
            base = rbn if run.norm.startswith("rbn") else bn
            trained = base + 0.01 * run.seed + 0.001 * (run.norm != "bn") * run.seed
            records[run.key] = record(run, **({} if run.tuning else {"trained": trained}))
    return records


def test_the_answer_gives_the_verdict_first():
    results = DomainResults(SETTINGS, complete(0.6, 0.5), {})
    said = domains_answer(results)
    assert said.en.startswith(
        "RBN is more accurate than BN on a domain it was not trained on (+10.10 ["
    )
    assert "9 pairs in 3 targets" in said.en
    assert said.zh.startswith("在未参与训练的域上，RBN 的准确率高于 BN")
    assert domains_answer(DomainResults(SETTINGS, {}, {})).en == "Not run."


def test_records_come_back_and_changed_ones_are_refused(tmp_path):
    store = DomainStore(tmp_path)
    store.append(record(RUN, trained=0.25))
    store.append(DomainFailure(replace(RUN, seed=1), "said", "trace", "now"))
    again = DomainStore(tmp_path)
    assert again.records == store.records
    assert again.failures == store.failures
    path = tmp_path / "domains.jsonl"
    path.write_text(path.read_text() + '{"half')  # what a killed writer leaves
    assert DomainStore(tmp_path).records == store.records
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    with pytest.raises(UsageError, match="changed after it was written"):
        DomainStore(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"weight_decay": -1.0}, "weight decay must be zero"),
    ],
)
def test_a_run_out_of_range_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        replace(RUN, **changes)


def study(folder, weights, out, *more):
    return main(
        [
            "study", "domains", "--images", str(folder), "--weights", str(weights),
            "--model", MODEL, "--image-size", "32", "--seeds", "1", "--few-seeds", "1",
            "--epochs", "1", "--batch-size", "8", "--rates", "0.01", "--calibration-rates", "10",
            "--out", str(out), *more,
        ]
    )  # fmt: skip


def test_the_study_runs_stops_in_time_and_goes_on(folder, weights, tmp_path, capsys):
    out = tmp_path / "out"
    assert study(folder, weights, out, "--minutes", "0.001", "--no-page", "--targets", "c") == 0
    assert "The time is up" in capsys.readouterr().err
    assert study(folder, weights, out, "--processes", "2", "--targets", "c", "--keep-models") == 0
    said = capsys.readouterr()
    assert "7 of 8" in said.err
    assert "domains: " in said.out
    records = [json.loads(line) for line in (out / "domains.jsonl").read_text().splitlines()]
    assert len(records) == 7  # with one rate BN at the rate of RBN is the run of BN itself
    (kept,) = out.glob("*.safetensors")
    assert kept.name == "bn-c-seed0.safetensors"
    model = pretrained(replace(RUN, seed=0), 2, Weights(MODEL, weights))
    model.load_state_dict(load_file(kept))
    tested = {len(r["target"]) for r in records if r["config"]["norm"] == "rbn:preserve=yes"}
    assert tested == {0, 9}
    page = (out / "domains" / "report.html").read_text()
    assert "全部目标域" in page
    assert study(folder, weights, out, "--estimate", "--targets", "c") == 0
    assert "0 runs of 1 epochs take about 0.0 minutes" in capsys.readouterr().err
    assert study(folder, weights, out, "--no-run", "--targets", "c") == 0
    assert (out / "domains" / "report.html").read_text() == page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of the committed records."""
    out = tmp_path_factory.mktemp("report")
    shutil.copy(Path(__file__).parents[2] / "results" / "studies" / "domains.jsonl", out)
    assert main(["study", "domains", "--no-run", "--out", str(out)]) == 0
    return out / "domains" / "report.html"


@pytest.mark.parametrize("viewport", VIEWPORTS)
def test_nothing_of_the_page_is_off_it_or_scrolls_sideways(report, browser, viewport):
    page = opened(browser, report, viewport)
    assert page.locator("#arms tbody tr").count() == len(ARMS)
    assert_fits(page)
    assert page.errors == []
    page.close()


def test_the_time_is_estimated_and_epochs_are_cut(folder, weights, tmp_path, capsys):
    assert study(folder, weights, tmp_path, "--estimate", "--epochs", "2") == 0
    assert "24 runs of 2 epochs take about" in capsys.readouterr().err
    assert not (tmp_path / "domains.jsonl").exists()
    assert study(folder, weights, tmp_path, "--cut") == 2
    assert "--cut needs --minutes" in capsys.readouterr().err


def test_processes_that_were_killed_are_said_and_no_run_is_blamed(folder, weights):
    work = Work(load_domains(folder, 32).share(), MODEL, weights, "cpu", 1)
    kept = []
    with Pool(work, 1) as pool:
        (process,) = pool._workers.values()
        process.kill()
        process.join()
        with pytest.raises(UsageError, match="the processes that make the runs ended"):
            pool.run(lambda: [RUN], lambda run: False, lambda run: None, kept.append, None)
    assert kept == []


def test_bad_input_is_refused(folder, weights, tmp_path, capsys):
    assert study(tmp_path / "none", weights, tmp_path) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert study(folder, weights, tmp_path, "--targets", "d") == 2
    assert "unknown domain 'd': choose from a, b, c" in capsys.readouterr().err
    assert study(folder, weights, tmp_path, "--device", "cuda:99") == 2
    assert "device 'cuda:99' cannot be had here" in capsys.readouterr().err
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    assert study(folder, tmp_path / "broken.safetensors", tmp_path) == 2
    assert "broken.safetensors" in capsys.readouterr().err
    (tmp_path / "odd" / "a" / "x").mkdir(parents=True)
    assert study(tmp_path / "odd", weights, tmp_path) == 2
    assert "must hold DOMAIN/CLASS/IMAGE" in capsys.readouterr().err
