"""The benchmark: what it counts, compares and writes. Times are not tested."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from tolerances import assert_close

import rbnorm
from rbnorm_cli.main import main
from rbnorm_lab.bench import candidates, cases, command, measure, networks, rows, show
from rbnorm_lab.bench.candidates import Part, Subject
from rbnorm_lab.bench.cases import Case, Row
from rbnorm_lab.bench.measure import count_bytes
from rbnorm_lab.bench.parts import PARTS, PER_CALL
from rbnorm_lab.errors import UsageError
from rbnorm_lab.names import NORMS

CPU = torch.device("cpu")
CASE = Case("layers", "training", "float32", "nchw", (2, 3, 4, 5))


def make_row(candidate, median_s=1.0, case=CASE, **values):
    numbers = {"q1_s": median_s, "q3_s": median_s, "saved_bytes": 8, "peak_bytes": 8, **values}
    return Row(
        **asdict(case),
        candidate=candidate,
        backend="torch",
        median_s=median_s,
        rounds=7,
        calls=1,
        ratio_to_batchnorm=median_s,
        threads=1,
        **numbers,
    )


def subject(name, *calls):
    return Subject(name, "torch", calls)


# The timing.


def test_candidates_and_their_inputs_take_turns():
    order = []
    subjects = [
        subject(name, *(lambda x=name + i: order.append(x) for i in "12")) for name in "abc"
    ]
    measure.in_turn(subjects, 3, CPU, 4)
    rounds = ("abc", "bca", "cab", "abc")  # every round begins with the next
    assert order == [name + i for turn in rounds for name in turn for i in "121"]


@pytest.mark.parametrize(
    ("repeats", "seconds", "rounds"), [(15, 0.0, 7), (3, 0.0, 3), (15, 60.0, 15)]
)
def test_a_slow_case_ends_after_seven_rounds(repeats, seconds, rounds, monkeypatch):
    monkeypatch.setattr(measure, "SLOW", seconds)
    found = measure.in_turn([subject("a", lambda: None)], 1, CPU, repeats)
    assert len(found["a"]) == rounds


def test_a_timing_of_several_calls_is_divided_by_their_number(monkeypatch):
    monkeypatch.setattr(measure, "host_seconds", lambda work: sum(call() for call in work) ** 2)
    assert measure.in_turn([subject("a", lambda: 3)], 5, CPU, 2)["a"] == [45.0, 45.0]


def test_a_row_has_the_quartiles_and_the_ratio_of_medians(monkeypatch):
    timings = {"batchnorm": [4.0, 2.0, 8.0], "rbnorm": [9.0, 1.0, 3.0]}
    monkeypatch.setattr(measure, "in_turn", lambda *_: timings)
    subjects = [subject(name, lambda: None) for name in timings]
    batchnorm, ours = measure.measure(CASE, subjects, CPU)
    assert (batchnorm.q1_s, batchnorm.median_s, batchnorm.q3_s) == (3.0, 4.0, 6.0)
    assert (batchnorm.rounds, batchnorm.ratio_to_batchnorm) == (3, 1.0)
    assert (ours.median_s, ours.ratio_to_batchnorm) == (3.0, 0.75)


@pytest.mark.parametrize(("shape", "calls"), [(PER_CALL, 50), ((32, 64, 112, 112), 1)])
def test_small_inputs_are_called_several_times_in_a_timing(shape, calls):
    case, one = replace(CASE, shape=shape), [subject("batchnorm", lambda: None)]
    assert measure.measure(case, one, CPU, 1)[0].calls == calls


# The candidates.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_all_ways_of_rbn_compute_the_same_of_an_input_as_the_case_has_it(mode, layout, dtype):
    case = replace(CASE, mode=mode, layout=layout, dtype=dtype)
    for tensor in candidates.inputs(case, CPU)[0]:
        assert tensor.is_contiguous(memory_format=cases.LAYOUTS[layout])
        assert tensor.dtype == getattr(torch, dtype)
    found = {s.name: s for s in candidates.eager(case, CPU)}
    assert list(found)[:4] == ["batchnorm", "rbnorm", "literal", "copy"]
    results = {}
    for name in found.keys() & {"rbnorm", "rbnorm portable", "literal"}:
        torch.manual_seed(1)
        for parameter in found[name].model.parameters():
            torch.nn.init.normal_(parameter)
        with found[name].ready() as call:
            result = call()
        results[name] = result if case.training else (result,)
    expected = results.pop("literal")
    assert expected[0].dtype == getattr(torch, dtype)
    for actual in results.values():
        for tensor, other in zip(actual, expected, strict=True):
            assert_close(tensor, other, getattr(torch, dtype))


def test_the_compiled_candidates_stand_beside_eager_batchnorm():
    names = [s.name for s in candidates.compiled(CASE, CPU)]
    assert names == ["batchnorm", "compiled batchnorm", "compiled rbnorm", "compiled literal"]


def test_the_literal_model_is_the_model_with_rbn():
    case = Case("models", "inference", "float32", "nchw", (1, 3, 32, 32))
    found = {s.name: s for s in networks.networks(case, CPU, "cifar-resnet8")}
    with found["rbnorm"].ready() as ours, found["literal"].ready() as literal:
        assert found["literal"].model.bn1.__class__ is candidates.Literal
        assert_close(ours(), literal(), torch.float32)


# The norms in a network.


def norm_costs(mode):
    part = PARTS["norms"]
    (case,) = (case for case in part.cases if case.mode == mode)
    return {s.name: s for s in part.subjects(replace(case, shape=(2, 1, 9, 7)), CPU)}


def test_every_norm_has_its_parameters():
    found = norm_costs("training")
    assert list(found) == ["batchnorm", *NORMS[1:]]
    counts = {name: sum(p.numel() for p in s.model.parameters()) for name, s in found.items()}
    more = {name: count - counts["batchnorm"] for name, count in counts.items()}
    channels = 3 * (16 + 32 + 64)  # of the nine norms of cifar-resnet8
    assert more["gn"] == more["ln"] == more["in"] == 0
    assert more["rbn-scale"] == 2 * channels
    assert (more["rbn-center"], more["rbn"]) == (channels, 3 * channels)


# The bytes.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_saved_are_the_input_and_the_tables(dtype):
    case = replace(CASE, dtype=dtype)
    found = {s.name: count_bytes(s, CPU).saved for s in candidates.eager(case, CPU)}
    N, C = case.shape[:2]
    assert found["batchnorm"] == case.nbytes + 2 * C * 4  # mean and 1 / std
    assert found["rbnorm"] == case.nbytes + N * C * 4 + 2 * C * 4  # m, E and V
    assert found["copy"] == 0


def test_peak_memory_is_what_lives_at_once():
    def call():
        for count in (1000, 3000, 2000):
            torch.empty(count, dtype=torch.uint8)  # freed before the next one
        both = [torch.empty(1500, dtype=torch.uint8) for _ in range(2)]
        del both[0]

    assert count_bytes(subject("a", call), CPU).peak == 3000


def test_parts_have_no_case_twice():
    every = [case for part in PARTS.values() for case in part.cases]
    assert len(set(every)) == len(every)


def test_below_the_ratios_stand_their_geometric_mean_and_the_worst():
    """Of the suite: the map on which a call is timed is no part of it."""
    ratios = {(1, 1, 1, 7): 0.3125, (1, 1, 1, 9): 0.8, (1, 1, 1, 8): 0.5, PER_CALL: 3.0}
    measured = [
        make_row(name, ratio, replace(CASE, shape=shape))
        for shape, ours in ratios.items()
        for name, ratio in (("batchnorm", 1.0), ("rbnorm", ours))
    ]
    (table,) = show.tables(measured)
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["input"][-1] == "mean of first 3 (worst)"
    assert cells["rbnorm"] == ["0.31", "0.80", "0.50", "3.00", "0.50 (0.80)"]


# The command.


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of one tiny case each."""
    parts = {
        name: Part((replace(CASE, part=name),), candidates.eager) for name in ("layers", "models")
    }
    monkeypatch.setattr(command, "PARTS", parts)


def bench(part, out):
    assert main(["bench", "--parts", part, "--repeats", "2", "--out", str(out)]) == 0
    found, machine = rows.load(out)
    return {name: [row for row in found if row.part == name] for name in machine}


def test_the_command_writes_rows_machine_and_figure(small_parts, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    found = bench("layers,models", out)
    assert len({len(own) for own in found.values()}) == 1
    for by_candidate in cases.cases(row for own in found.values() for row in own):
        base = by_candidate["batchnorm"]
        for row in by_candidate.values():
            assert row.ratio_to_batchnorm == row.median_s / base.median_s
            assert 0 < row.q1_s <= row.median_s <= row.q3_s
            assert (row.rounds, row.threads) == (2, torch.get_num_threads())
    _, machine = rows.load(out)
    facts = machine["layers"]["rbnorm"], machine["layers"]["device"]
    assert facts == (rbnorm.__version__, "cpu")
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "bench.svg").read_text()
    printed = capsys.readouterr().out
    assert "layers, training, float32, nchw" in printed


def test_a_part_measured_again_replaces_its_rows_alone(small_parts, tmp_path):
    first, second, third = (bench(part, tmp_path) for part in ("layers", "models", "layers"))
    assert second["layers"] == first["layers"] != third["layers"]
    assert third["models"] == second["models"]
    assert len(third["layers"]) == len(first["layers"])


def test_rows_of_another_processor_stay_where_they_are(small_parts, tmp_path, monkeypatch):
    theirs = [make_row("batchnorm")]
    rows.save(tmp_path, theirs, {"layers": {"cpu": "Another(R) CPU", "device": "cpu"}})
    monkeypatch.setattr(rows, "_cpu_name", lambda: "This(R) Fine CPU @ 2.10GHz")
    monkeypatch.setenv("RBNORM_CPU", "avx2")
    for _ in range(2):
        main(["bench", "--parts", "layers", "--repeats", "1", "--out", str(tmp_path)])
    assert rows.load(tmp_path)[0] == theirs
    found, machine = rows.load(tmp_path / "this-fine-cpu-2-10ghz-avx2")
    assert machine["layers"]["cpu"] == "This(R) Fine CPU @ 2.10GHz"
    assert len(found) == len({row.candidate for row in found})


@pytest.mark.parametrize("line", ["{", "[]", '{"part": "layers"}', "\xff"])
def test_foreign_rows_are_refused(line, tmp_path):
    (tmp_path / rows.ROWS).write_text(line + "\n")
    (tmp_path / rows.MACHINE).write_text(json.dumps({}))
    with pytest.raises(UsageError, match="are not rows of this benchmark"):
        rows.load(tmp_path)


def test_the_figure_has_a_mark_for_every_ratio():
    measured = [
        make_row(name, ratio, replace(CASE, layout=layout))
        for layout in ("nchw", "channels_last")
        for name, ratio in (("batchnorm", 1.0), ("rbnorm", 0.5), ("compiled rbnorm", 0.25))
    ]
    panels = show.figure(measured).axes
    titles = ["training, float32, nchw", "training, float32, channels_last"]
    assert [axes.get_title() for axes in panels] == titles
    for axes in panels:
        marks = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
        assert (marks["rbnorm"], marks["compiled rbnorm"]) == ([0.5], [0.25])


def test_an_interrupted_benchmark_keeps_the_parts_that_had_ended(
    small_parts, monkeypatch, tmp_path, capsys
):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(command.PARTS, "models", Part((CASE,), interrupt))
    arguments = ["--parts", "layers", "models", "--repeats", "1", "--out", str(tmp_path)]
    assert main(["bench", *arguments]) == 130
    assert "the parts of the benchmark that had ended are kept" in capsys.readouterr().err
    assert {row.part for row in rows.load(tmp_path)[0]} == {"layers"}
