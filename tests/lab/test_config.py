import json
from dataclasses import asdict, fields, replace

import pytest
from support import CONFIG

from rbnorm_lab.config import RunConfig
from rbnorm_lab.errors import UsageError

OTHER = {
    "data": "cifar10",
    "model": "cifar-resnet14",
    "norm": "rbn",
    "batch_size": 32,
    "seed": 1,
    "epochs": 3,
    "lr": 0.2,
    "weight_decay": 0.0,
    "mixed_precision": "bf16",
    "limit": 10,
    "image_size": 16,
    "workers": 1,
    "processes": 2,
    "norm_batch": 4,
    "sorted_batches": True,
    "decay_calibration": False,
    "pretrain_epochs": 1,
    "pretrain_lr": 0.2,
    "held_out": True,
    "shift": "trained",
    "trace": False,
    "recipe": "steps",
    "decay_every": 10,
    "test_limit": 20,
    "frozen": True,
    "match_moments": True,
    "in_order": True,
    "conditions": ("noise/3",),
    "target": "sketch",
    "calibration_rate": 10.0,
}


def test_key_never_changes_for_the_same_config():
    assert CONFIG.key == "c2940c294898661c"


@pytest.mark.parametrize("name", [field.name for field in fields(RunConfig)])
def test_key_depends_on_every_field(name):
    assert replace(CONFIG, **{name: OTHER[name]}).key != CONFIG.key


@pytest.mark.parametrize("changes", [{}, OTHER])
def test_survives_a_dictionary(changes):
    config = replace(CONFIG, **changes)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert RunConfig.from_dict(asdict(config)) == config


def test_a_field_that_the_first_records_lack_is_left_out_at_its_default():
    assert "frozen" not in CONFIG.to_dict()
    assert replace(CONFIG, frozen=True).to_dict()["frozen"] is True


def test_what_comes_after_a_step_is_no_part_of_its_identity():
    changes = {"workers": 2, "shift": "trained", "trace": False}
    assert replace(CONFIG, **changes).identity() == CONFIG.identity()
    assert replace(CONFIG, epochs=3).identity() != CONFIG.identity()  # one cycle is their length
    steps = replace(CONFIG, recipe="steps")
    assert replace(steps, epochs=3).identity() == steps.identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": "2"}, r"Expected `int`, got `str` - at `\$.epochs`"),
        ({"lr": None}, r"Expected `float`, got `null` - at `\$.lr`"),
        ({"recipe": "cosine"}, "unknown recipe 'cosine': choose from one-cycle, steps"),
    ],
)
def test_refuses_a_dictionary_that_is_no_config(change, message):
    with pytest.raises(UsageError, match=message):
        RunConfig.from_dict({**asdict(CONFIG), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_batch": 3}, "64 images cannot be cut into parts of 3"),
        ({"norm_batch": 64, "processes": 2}, "32 images cannot be cut into parts of 64"),
        ({"norm_batch": 0}, "norm batch must be at least 1, not 0"),
        ({"pretrain_epochs": -1}, "pretrain epochs must be at least 0, not -1"),
        ({"pretrain_lr": 0.0}, "pretrain lr must be a positive number, not 0"),
        ({"shift": "some"}, "unknown shift 'some': choose from none, trained, controls"),
        ({"decay_every": 0}, "decay every must be at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"recipe": "adam"}, "unknown recipe 'adam': choose from one-cycle, steps"),
    ],
)
def test_refuses_a_value_out_of_range(change, message):
    with pytest.raises(UsageError, match=message):
        replace(CONFIG, **change)


def test_refuses_a_dictionary_without_a_field():
    values = asdict(CONFIG)
    del values["seed"]
    with pytest.raises(UsageError, match="missing required field `seed`"):
        RunConfig.from_dict(values)
