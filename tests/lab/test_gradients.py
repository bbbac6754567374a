"""The gradients of the first steps, by the gate that RBN begins with."""

import math
from dataclasses import replace

import pytest
from simulated import results_of
from support import make_record

from rbnorm_cli.main import main
from rbnorm_cli.parser import make_parser
from rbnorm_lab.catalogue.gradients import GATES, answer, factor, ratios, settings_of, study
from rbnorm_lab.store import Store
from rbnorm_lab.studies.results import collect

TINY = (
    *("study", "gradients", "--data", "digits", "--limit", "64", "--steps", "2"),
    *("--seeds", "1", "--out", "out"),
)


def tiny(**change):
    options = vars(make_parser("").parse_args(["study gradients", *TINY[2:]]))
    return study(settings_of(options | change), None)


def test_with_gamma_compensated_the_first_gradients_are_the_formulas(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(list(TINY)) == 0
    said = capsys.readouterr().out
    found = ratios(collect(tiny(), Store(tmp_path / "out")))
    for w_b in GATES:
        gate, reference = (1 / (1 + math.exp(-w)) for w in (w_b, 1.0))
        expected = (1 - gate) / (1 - reference)
        assert factor(w_b) == pytest.approx(expected)
        values = found[w_b, True]
        assert values["w_b"] == pytest.approx(expected, rel=1e-3)
        assert values["w_v"] == pytest.approx(expected, rel=1e-3)
        assert values["w_m"] == pytest.approx(1, rel=1e-3)
        assert values["gamma"] == pytest.approx(gate / reference, rel=1e-3)
    assert "0.07 (0.07, " in said
    assert "0.067" in (tmp_path / "out" / "gradients" / "report.html").read_text()
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    assert len(before.splitlines()) == 2 * len(GATES)
    assert main(list(TINY)) == 0
    assert "Nothing left to run" in capsys.readouterr().out
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("steps", "message"),
    [("0", "steps must be at least 1, not 0"), ("3", "must be from 1 to 2, those of one epoch")],
)
def test_steps_are_those_of_an_epoch_at_most(tmp_path, monkeypatch, capsys, steps, message):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--steps", steps]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_answer_is_the_mean_of_the_seeds():
    of = tiny(seeds=2)
    records = {}
    for run in of.runs():
        one = 1.0 if run.norm.startswith("rbn:preserve=yes") and "init" not in run.norm else None
        one = one or 1.0 + run.seed
        gradients = {name: [2 * one, 3 * one] for name in ("w_m", "w_v", "w_b", "gamma")}
        records[run.key] = replace(make_record(), config=run, epochs=(), gradients=gradients)
    results = results_of(of, records)
    assert ratios(results)[4.0, True]["w_b"] == pytest.approx(1.5)
    assert "1.50 (1.86, 1.50) from w_b = 0" in answer(results).en
    assert answer(results_of(of)).en == "Not run."
