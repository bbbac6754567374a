"""Models sharded over two processes: values that RBN supplies are shards like their neighbours."""

from typing import Any

import pytest
import ranks
import sharded
import torch
from torch import nn
from torch.distributed import checkpoint

import rbnorm

CALIBRATION = {"1.center_weight": 0.0, "1.scale_weight": 0.0, "1.scale_bias": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("two processes"))


@pytest.fixture(scope="module")
def found(folder) -> list[dict[str, Any]]:
    return ranks.on_ranks(sharded.everything, folder)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("way", ["assigned", "copied", "distributed"])
def test_sharded_model_takes_a_batchnorm_checkpoint(found, way, device, affine) -> None:
    expected = sharded.pretrained(affine).state_dict()
    expected |= {name: torch.full((5,), value) for name, value in CALIBRATION.items()}
    for part in found:
        state = part["batchnorm"][f"{way}, {device}, {affine}"]
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(state[name], value), name


def test_sharded_model_without_memory_gets_the_initial_calibration(found) -> None:
    for part in found:
        values = {name: value.unique().tolist() for name, value in part["without memory"].items()}
        assert values == {name: [value] for name, value in CALIBRATION.items()}


def test_sharded_model_is_neither_converted_nor_reverted(found) -> None:
    for part in found:
        convert, revert = part["refused"]
        assert "the model is wrapped in FSDPModule, which averages" in convert
        assert "layer '1' is sharded; revert the model first, then shard it" in revert


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed.checkpoint")
def test_checkpoint_is_resharded_from_two_processes_to_four_and_one(
    found, folder, tmp_path
) -> None:
    expected = found[0]["saved"]
    assert expected["1.weight"].unique().numel() == 5
    again = str(tmp_path)
    parts = ranks.on_ranks(sharded.resharded, folder, again, world=4)
    alone = rbnorm.convert_batchnorm(sharded.built(nn.BatchNorm2d)).state_dict()
    checkpoint.load(alone, checkpoint_id=again)
    for state in (*parts, alone):
        assert state.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in state.items())
