"""What the studies run, and that it is what they say."""

from dataclasses import replace

import pytest
import torch
from simulated import corrupted, records_of, results_of
from support import CONFIG, make_record

from rbnorm_lab.catalogue import maker
from rbnorm_lab.catalogue.center_init import front_figure
from rbnorm_lab.config import RunConfig
from rbnorm_lab.errors import UsageError
from rbnorm_lab.models import build_model
from rbnorm_lab.names import studies
from rbnorm_lab.norms import canonical_norm
from rbnorm_lab.records import Failure
from rbnorm_lab.store import Store
from rbnorm_lab.studies import work
from rbnorm_lab.studies.rates import Rates
from rbnorm_lab.studies.runner import Runner, Shard
from rbnorm_lab.studies.study import FIRST_TUNING_SEED, Settings
from rbnorm_lab.studies.work import Here, Sources, attempt

CATALOGUE = [*studies(), "compare", "domains"]
SETTINGS = Settings(
    run=RunConfig(
        data="digits",
        model="cifar-resnet8",
        norm="bn",
        batch_size=32,
        seed=0,
        epochs=1,
        lr=0.1,
        weight_decay=5e-4,
        limit=100,
        trace=False,
    ),
    seeds=3,
    rates=(0.1, 0.2),
    tuning_seeds=2,
    norms=("bn", "rbn"),
    batch_sizes=(32, 16),
    targets=("a", "b"),
)


SCENES = replace(
    SETTINGS, run=replace(SETTINGS.run, data="camvid", model="lraspp-mobilenet-v2", batch_size=8)
)


def settings_of(name):
    return SCENES if name == "segmentation" else SETTINGS


class Alike:
    """Rates by the first letters of a norm."""

    def __init__(self, **rates):
        self.rates = rates

    def __call__(self, model, norm, norm_batch=None, frozen=False, target=None):
        return self.rates.get(norm[:3], 0.1)

    def calibration(self, model, norm, *, target):
        return 10.0


rate = Alike()


def rates_of(settings, folder, wanted=()):
    rates = Rates(settings, Store(folder))
    for one in wanted:
        rates(*one)
    return rates


@pytest.mark.parametrize("name", CATALOGUE)
def test_arms_of_a_study_are_distinct_runs_with_a_baseline_in_their_group(name):
    study = maker(name)(settings_of(name), Alike(rbn=0.2))
    assert len(set(study.runs())) == len(study.runs())
    assert study.name == name
    labels = [(arm.group, arm.label) for arm in study.arms]
    assert len(set(labels)) == len(labels)
    assert len(study.runs()) == sum(len(arm.runs(study.seeds)) for arm in study.arms)
    for arm in study.arms:
        assert arm.baseline is None or (arm.group, arm.baseline) in labels
    for comparison in (*study.primary, *study.others):
        groups = [comparison.group] if comparison.group else ["a", "b"]
        for side in (comparison.treatment, comparison.control):
            assert {(group, side) for group in groups} <= {*labels}


def test_the_primary_comparisons_are_the_three_named_before_the_runs():
    study = maker("primary")(SETTINGS, rate)
    arms = {(arm.group, arm.label): arm.config for arm in study.arms}
    found = [
        (
            arms[c.group, c.treatment].norm,
            arms[c.group, c.control].norm,
            c.measure,
            arms[c.group, c.treatment].norm_batch,
        )
        for c in study.primary
    ]
    assert found == [
        ("rbn", "bn", "clean", None),
        ("rbn", "bn", "shifted", None),
        ("rbn", "bn", "clean", 2),
    ]


def cifar(chosen=rate, seeds=5):
    return maker("cifar")(replace(SETTINGS, seeds=seeds), chosen)


def test_the_primary_comparisons_of_cifar_are_pairs_that_differ_in_the_norm_alone():
    study = cifar()
    arms = {arm.label: arm for arm in study.arms}
    pairs = [(arms[c.treatment], arms[c.control], c.measure) for c in study.primary]
    assert [(c.config.norm, c.config.match_moments, measure) for _, c, measure in pairs] == [
        ("bn", False, "clean"),
        ("bn", False, "shifted"),
        ("bn", True, "shifted"),
    ]
    for treatment, control, _ in pairs:
        assert replace(treatment.config, norm="bn", shift=control.config.shift) == control.config
        assert treatment.seeds is control.seeds is None
    assert study.paired_t


def test_cifar_tests_all_images_and_the_first_pair_with_small_batches_too():
    shifts = {arm.label: arm.config.shift for arm in cifar().arms}
    assert {label for label, shift in shifts.items() if shift == "whole-controls"} == {"bn", "rbn"}
    assert set(shifts.values()) == {"whole", "whole-controls"}


def test_arms_of_few_seeds_run_with_the_first_and_whole_pairs_come_first():
    study = cifar(Alike(rbn=0.2, gn=0.4))
    runs = study.runs()
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    by_seed = [[run for run in runs if run.seed == seed] for seed in study.seeds]
    assert [len(of) for of in by_seed] == [9, 9, 9, 4, 4]
    first = [(run.norm, run.match_moments) for run in by_seed[0][:4]]
    assert first == [("bn", False), ("rbn", False), ("bn", True), ("rbn", True)]
    rates = {arm.label: arm.config.lr for arm in study.arms}
    assert rates["rbn, BatchNorm's learning rate"] == rates["gn, BatchNorm's learning rate"] == 0.1
    assert rates["centring only"] == rates["rbn, mean and contrast set"] == 0.2


def test_rates_are_chosen_by_runs_of_the_tuning_epochs(tmp_path):
    rates = rates_of(replace(SETTINGS, tuning_epochs=7), tmp_path, [("cifar-resnet8", "bn")])
    assert {run.epochs for run in rates.runs()} == {7}


def test_a_pair_differs_in_the_norm_alone():
    for arm in maker("primary")(SETTINGS, rate).arms:
        assert replace(arm.config, norm="bn", norm_batch=None, shift="none") == SETTINGS.config(
            "bn", 0.1
        )


def test_studies_share_the_runs_they_have_in_common():
    names = ("primary", "batch-size", "shift", "ablation", "networks")
    runs = {name: set(maker(name)(SETTINGS, rate).runs()) for name in names}
    assert len(runs["primary"] & runs["batch-size"]) == 3 * 4
    assert len(runs["primary"] & runs["shift"] & runs["ablation"] & runs["networks"]) == 3 * 2


def test_centring_begins_at_each_value_in_each_place_at_the_rate_of_rbn():
    arms = maker("center-init")(SETTINGS, Alike(rbn=0.2)).arms
    begun = {a.label: (a.config.norm, a.config.lr) for a in arms if "w_m" in a.label}
    values = ("0.25", "0.5", "0.9")
    assert begun == {
        **{f"first layer, w_m = −{v}": (f"rbn:first_center_weight_init=-{v}", 0.2) for v in values},
        **{
            f"first three layers, w_m = −{v}": (
                *(f"rbn:first_center_weight_init=-{v}:first_layers=3", 0.2),
            )
            for v in values
        },
        **{f"all layers, w_m = −{v}": (f"rbn:center_weight_init=-{v}", 0.2) for v in values},
    }
    assert all(canonical_norm(norm) == norm for norm, _ in begun.values())


def test_the_figure_of_beginnings_joins_what_was_measured_by_a_line_from_rbn():
    study = maker("center-init")(SETTINGS, rate)
    accuracy = {"bn": 0.7, "rbn": 0.8, "all layers, w_m = −0.5": 0.9}
    records = records_of(
        study,
        lambda arm, seed: accuracy.get(arm.label),
        lambda arm, seed: {"trained": corrupted(accuracy[arm.label] / 2)},
    )
    axes = front_figure(results_of(study, records)).axes[0]
    drawn = {line.get_label(): line.get_xydata().round(6).tolist() for line in axes.get_lines()}
    assert {k: v for k, v in drawn.items() if not k.startswith("_")} == {
        "first layer": [[80, 40]],
        "first three layers": [[80, 40]],
        "all layers": [[80, 40], [90, 45]],
        "bn": [[70, 35]],
    }


@pytest.mark.parametrize("name", ["cifar", "shift", "center-init"])
def test_studies_of_robustness_have_images_of_equal_moments_as_a_control(name):
    study = maker(name)(SETTINGS, rate)
    control = "bn, mean and contrast set"
    matched = {a.label: a.config.norm for a in study.arms if a.config.match_moments}
    assert matched == {control: "bn", "rbn, mean and contrast set": "rbn"}
    compared = [c for c in (*study.primary, *study.others) if c.measure == "shifted"]
    assert any(control in (c.treatment, c.control) for c in compared)


def test_networks_have_every_norm_at_its_own_rate_and_at_batchnorms():
    """Rates are those of the first network; BatchNorm's own is not run twice."""
    settings = replace(SETTINGS, networks=("timm:regnetx_002",))
    wanted = set()

    def chosen(model, norm, norm_batch=None):
        wanted.add(model)
        return {"rbn": 0.2, "gn": 0.4}.get(norm, 0.1)

    arms = maker("networks")(settings, chosen).arms
    assert wanted == {"cifar-resnet8"}
    second = {a.label: a.config.lr for a in arms if a.group == "timm:regnetx_002"}
    assert len(second) == 6 + 2
    assert (second["rbn"], second["rbn, BatchNorm's learning rate"]) == (0.2, 0.1)
    assert (second["gn"], second["gn, BatchNorm's learning rate"]) == (0.4, 0.1)
    assert second["ln2d"] == 0.1


def test_a_normalisation_batch_has_the_rates_chosen_for_it():
    def chosen(model, norm, norm_batch=None):
        return {("bn", 2): 0.4, ("rbn", None): 0.2, ("rbn", 2): 0.2}.get((norm, norm_batch), 0.1)

    study = maker("batch-size")(SETTINGS, chosen)
    rates = {a.label: a.config.lr for a in study.arms if a.group == "normalisation batch 2"}
    assert rates == {
        "bn": 0.1,
        "rbn": 0.2,
        "bn, RBN's learning rate": 0.2,
        "bn, rate tuned for this batch": 0.4,
    }
    first = study.others[0]
    assert (first.group, first.treatment, first.control) == (
        *("normalisation batch 2", "rbn", "bn, rate tuned for this batch"),
    )


def test_rates_of_a_normalisation_batch_are_chosen_with_it(tmp_path):
    rates = rates_of(SETTINGS, tmp_path, [("cifar-resnet8", "rbn:preserve=yes", 2)])
    assert {(run.norm, run.norm_batch, run.lr) for run in rates.runs()} == {
        ("rbn", 2, 0.1),
        ("rbn", 2, 0.2),
    }


def test_frozen_statistics_have_a_rate_of_their_own(tmp_path):
    def chosen(model, norm, norm_batch=None, frozen=False):
        return 0.01 if frozen else 0.1

    study = maker("segmentation")(SCENES, chosen)
    rates = {(a.config.frozen, a.config.lr) for a in study.arms}
    assert rates == {(False, 0.1), (True, 0.01)}
    rates = rates_of(SCENES, tmp_path, [("lraspp-mobilenet-v2", "bn", None, True)])
    assert {(run.norm, run.frozen, run.lr) for run in rates.runs()} == {
        ("bn", True, 0.1),
        ("bn", True, 0.2),
    }


def test_clean_only_leaves_corruptions_out():
    settings = replace(SETTINGS, corrupted=False)
    for name in ("primary", "init", "fine-tune", "networks"):
        assert {arm.config.shift for arm in maker(name)(settings, rate).arms} == {"none"}


@pytest.mark.parametrize("norm", ["gn", "rbn", "rbn-center", "rbn:restrict=tanh"])
def test_every_norm_of_a_seed_has_the_same_initial_weights(norm):
    first, other = (
        build_model("cifar-resnet8", name, classes=10, channels=1, seed=5).state_dict()
        for name in ("bn", norm)
    )
    same = [name for name in first if name in other and "conv" in name]
    assert len(same) == 7
    assert all(torch.equal(first[name], other[name]) for name in same)


@pytest.fixture
def tuned(tmp_path):
    def make(accuracy, missing=(), failed=(), settings=SETTINGS, target=None):
        """Rates whose tuning runs ended with ``accuracy(norm, lr, calibration)``."""
        wanted = [(settings.model, norm, None, False, target) for norm in ("bn", "rbn")]
        rates = rates_of(settings, tmp_path, wanted)
        while new := [r for r in rates.runs() if r.key not in rates.store.records]:
            for run in new:
                value = accuracy(run.norm[:3], run.lr, run.calibration_rate)
                if (run.norm, run.lr) in failed:
                    rates.store.failures[run.key] = None
                if (run.norm, run.lr) not in (*missing, *failed):
                    record = replace(make_record(value), config=run)
                    rates.store.records[run.key] = record
            if missing or failed:
                break
        return rates

    return make


def test_each_norm_gets_the_rate_that_is_best_on_held_out_images(tuned):
    best = {"bn": 0.2, "rbn": 0.1}
    rates = tuned(lambda norm, lr, _: 0.8 + 0.1 * (lr == best[norm]))
    assert rates.complete
    assert [rates("cifar-resnet8", norm) for norm in ("bn", "rbn", "rbn:restrict=tanh")] == [
        0.2,
        0.1,
        0.1,
    ]
    assert [(c.config.norm, c.config.lr, chosen) for c, chosen in rates.table()] == [
        ("bn", 0.1, False),
        ("bn", 0.2, True),
        ("rbn", 0.1, True),
        ("rbn", 0.2, False),
    ]


def test_the_calibrations_rate_is_chosen_after_the_other_at_that_one(tuned):
    settings = replace(SETTINGS, calibration_rates=(10.0, 1.0, 30.0))
    rates = tuned(lambda norm, lr, c: lr / 2 + c / 1000, settings=settings, target="a")
    assert rates("cifar-resnet8", "rbn", target="a") == 0.2
    assert rates.calibration("cifar-resnet8", "rbn", target="a") == 30
    configs = [c.config for c, _ in rates.table()]
    tried = [(c.norm, c.lr, c.calibration_rate) for c in configs]
    assert tried == [
        *[("bn", 0.1, 1.0), ("bn", 0.2, 1.0)],
        *[("rbn:preserve=yes", 0.1, 10.0), ("rbn:preserve=yes", 0.2, 10.0)],
        *[("rbn:preserve=yes", 0.2, 1.0), ("rbn:preserve=yes", 0.2, 30.0)],
    ]
    assert len(rates.runs()) == 2 * 6


def test_equally_good_rates_give_the_smaller(tuned):
    assert tuned(lambda *_: 0.5)("cifar-resnet8", "rbn") == 0.1


def test_a_rate_whose_run_failed_is_not_chosen(tuned):
    rates = tuned(lambda norm, lr, _: 1 - lr, failed=[("rbn", 0.1)])
    assert rates.complete
    assert rates("cifar-resnet8", "rbn") == 0.2
    assert rates("cifar-resnet8", "bn") == 0.1


def test_nothing_is_chosen_before_all_candidates_were_tried(tuned):
    rates = tuned(lambda *_: 0.5, missing=[("rbn", 0.2)])
    assert not rates.complete
    assert [c.config.norm for c, _ in rates.table()] == ["bn", "bn"]


def test_tuning_sees_no_test_image_and_no_reported_seed(tuned):
    rates = tuned(lambda *_: 0.5)
    reported = maker("primary")(SETTINGS, rates).runs()
    assert all(run.held_out and run.seed >= FIRST_TUNING_SEED for run in rates.runs())
    assert not any(run.held_out or run.seed >= FIRST_TUNING_SEED for run in reported)


def test_the_first_seeds_of_bn_and_rbn_are_tested_on_a_domain_with_all_statistics():
    study = maker("domains")(replace(SETTINGS, few_seeds=2), Alike(rbn=0.2))
    assert len(study.runs()) == 2 * (3 + 3 + 2 + 2 + 2)
    tried = {(r.norm, r.seed) for r in study.runs() if r.shift == "controls"}
    assert tried == {("bn", 0), ("bn", 1), ("rbn:preserve=yes", 0), ("rbn:preserve=yes", 1)}
    assert {r.calibration_rate for r in study.runs() if r.norm == "bn"} == {1.0}
    assert {r.calibration_rate for r in study.runs() if r.norm == "rbn-center"} == {10.0}


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_shards_are_all_runs_each_once(of):
    runs = maker("shift")(SETTINGS, rate).runs()
    shares = [Shard(i, of).share(runs) for i in range(1, of + 1)]
    assert sorted(run.key for share in shares for run in share) == sorted(run.key for run in runs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/2", "1/0", "1/2/3", "-1/2", "1.0/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UsageError, match="--shard"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"seeds": 1001}, "seeds must be at most 1000, not 1001"),
        ({"tuning_seeds": 0}, "tuning seeds must be at least 1, not 0"),
        ({"rates": ()}, "rates must name at least one learning rate"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        replace(SETTINGS, **change)


def small(**change):
    return replace(CONFIG, epochs=1, limit=64, batch_size=32, trace=False, **change)


def seeds(store):
    return sorted(record.config.seed for record in store.records.values())


def test_a_run_that_fails_is_recorded_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    runs = [small(seed=seed) for seed in range(3)]
    train_run = work.train_run

    def failing(config, *rest):
        if config.seed == 1:
            raise RuntimeError("the loss is a banana\nmore")
        return train_run(config, *rest)

    def run(**retry):
        runner = Runner(Store(tmp_path), Here(Sources()))
        runner.run(lambda: runs, "runs", **retry)
        return Store(tmp_path)

    monkeypatch.setattr(work, "train_run", failing)
    store = run()
    assert seeds(store) == [0, 2]
    (failure,) = store.failures.values()
    assert failure.config == runs[1]
    assert failure.error == "RuntimeError: the loss is a banana"
    assert "in failing" in failure.trace
    lines = capsys.readouterr().err.splitlines()
    assert [line[:28] for line in lines] == [
        f"{i} of 3: bn, batch 32, seed {i - 1}" for i in (1, 2, 3)
    ]
    assert lines[1].endswith(failure.error)
    monkeypatch.undo()
    assert seeds(run(retry=False)) == [0, 2]
    assert seeds(run()) == [0, 1, 2]  # again, now that its cause is gone


def test_only_what_has_no_record_or_no_file_is_run(tmp_path):
    runs = [small(seed=seed) for seed in range(2)]
    store = Store(tmp_path)
    store.append(replace(make_record(), config=runs[0]))
    runner = Runner(store, Here(Sources()))
    assert runner.missing(runs) == runs[1:]
    kept = Runner(
        store, Here(Sources()), keep=lambda config: tmp_path / f"{config.seed}.safetensors"
    )
    assert kept.missing(runs) == runs
    kept.run(lambda: runs[:1], "runs")
    assert kept.missing(runs) == runs[1:]
    assert (tmp_path / "0.safetensors").exists()


def test_an_error_of_the_data_is_a_failure_too(tmp_path):
    result = attempt(small(data=f"imagefolder:{tmp_path}"), Sources())
    assert isinstance(result, Failure)
    assert "is no image folder" in result.error
