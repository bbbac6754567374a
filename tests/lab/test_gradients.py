"""The gradients of the first steps, by the gate that RBN begins with."""

import math

import pytest
from support import make_record

from rbnorm_cli.main import main
from rbnorm_lab.gradients import (
    GATES,
    GradientRecord,
    factor,
    gradients_answer,
    norm_of,
    ratios,
    store_of,
)

TINY = (
    *("study", "gradients", "--data", "digits", "--limit", "64", "--steps", "2"),
    *("--seeds", "1", "--out", "out"),
)


@pytest.fixture
def measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(list(TINY)) == 0
    return tmp_path / "out", capsys.readouterr().out


def test_with_gamma_compensated_the_first_gradients_are_the_formulas(measured):
    out, _ = measured
    found = ratios(list(store_of(out).load().values()))
    for w_b in GATES:
        gate, reference = (1 / (1 + math.exp(-w)) for w in (w_b, 1.0))
        expected = (1 - gate) / (1 - reference)
        assert factor(w_b) == pytest.approx(expected)
        values = found[w_b, True]
        assert values["w_b"] == pytest.approx(expected, rel=1e-3)
        assert values["w_v"] == pytest.approx(expected, rel=1e-3)
        assert values["w_m"] == pytest.approx(1, rel=1e-3)
        assert values["gamma"] == pytest.approx(gate / reference, rel=1e-3)


def test_the_same_command_again_measures_nothing(measured, capsys):
    out, said = measured
    before = (out / "gradients.jsonl").read_bytes()
    assert len(before.splitlines()) == 2 * len(GATES)
    assert main(list(TINY)) == 0
    assert (out / "gradients.jsonl").read_bytes() == before
    assert capsys.readouterr().out == said
    assert "0.07 (0.07, " in said


def test_records_of_other_settings_are_neither_taken_nor_averaged(measured, capsys):
    out, said = measured
    assert main([*TINY, "--steps", "1"]) == 2
    assert "the records in out have 2 steps, not 1: choose another --out" in capsys.readouterr().err
    assert main([*TINY, "--lr", "1e30"]) == 2
    assert "gradients at --lr 1e+30 are not finite: take less" in capsys.readouterr().err
    assert main([*TINY, "--lr", "0.3"]) == 0
    assert len((out / "gradients.jsonl").read_bytes().splitlines()) == 4 * len(GATES)
    capsys.readouterr()
    assert main([*TINY, "--no-run"]) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("steps", ["0", "3"])
def test_steps_are_those_of_an_epoch_at_most(tmp_path, monkeypatch, capsys, steps):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--steps", steps]) == 2
    assert f"steps must be from 1 to 2, those of one epoch, not {steps}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_answer_is_the_mean_of_the_seeds():
    records = []
    for seed in range(2):
        for w_b in GATES:
            norm = norm_of(w_b, compensated=True)
            one = 1.0 if w_b == 1 else 1.0 + seed
            gradients = {name: [2 * one, 3 * one] for name in ("w_m", "w_v", "w_b", "gamma")}
            config = make_record(norm=norm, seed=seed).config
            records.append(GradientRecord(config, gradients, {}, ""))
    assert ratios(records)[4.0, True]["w_b"] == pytest.approx(1.5)
    assert "1.50 (1.86, 1.50) from w_b = 0" in gradients_answer(records).en


def test_without_every_gate_there_is_no_answer():
    assert gradients_answer([]).en == "Not run."
