import json
import multiprocessing
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from support import CONFIG, execute, make_record

from rbnorm_lab.config import CONDITIONS
from rbnorm_lab.errors import UsageError
from rbnorm_lab.records import Failure, number
from rbnorm_lab.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def loaded(store):
    return Store(store.folder).records


def test_what_was_appended_is_loaded(store):
    records = [make_record(seed=seed) for seed in range(3)]
    for record in records:
        store.append(record)
    assert list(loaded(store).values()) == records


def test_no_file_is_no_record(store):
    assert loaded(store) == {}


def test_a_torn_last_line_is_ignored(store):
    store.append(make_record(seed=0))
    store.append(make_record(seed=1))
    store.path.write_bytes(store.path.read_bytes()[:-20])
    assert [record.config.seed for record in loaded(store).values()] == [0]


def test_a_torn_last_line_is_cut_by_the_next_append(store):
    first, second = make_record(seed=0), make_record(seed=1)
    store.append(first)
    whole = store.path.read_bytes()
    store.append(second)
    both = store.path.read_bytes()
    store.path.write_bytes(both[:-1])
    store.append(second)
    assert store.path.read_bytes() == both
    store.path.write_bytes(whole[: len(whole) // 2])
    store.append(first)
    assert store.path.read_bytes() == whole


def test_a_run_is_never_recorded_twice(store):
    store.append(make_record(accuracy=0.9))
    Store(store.folder).append(make_record(accuracy=0.1))
    assert [record.accuracy for record in loaded(store).values()] == [0.9]
    assert store.path.read_bytes().count(b"\n") == 1


def test_a_line_copied_by_hand_counts_once(store):
    store.append(make_record())
    store.path.write_bytes(store.path.read_bytes() * 2)
    assert len(loaded(store)) == 1


def test_a_corrupt_line_is_named(store):
    for seed in range(3):
        store.append(make_record(seed=seed))
    lines = store.path.read_bytes().splitlines(keepends=True)
    store.path.write_bytes(lines[0] + lines[1][:50] + b"\n" + lines[2])
    with pytest.raises(UsageError, match=r"records\.jsonl line 2 is no record"):
        loaded(store)


@pytest.mark.parametrize("line", [b"null", b"[]", b"3", b"{}", b'{"schema": 2}', b"\xff"])
def test_a_line_that_is_something_else_is_named(store, line):
    store.path.write_bytes(line + b"\n")
    with pytest.raises(UsageError, match="line 1 is no record"):
        loaded(store)


def test_another_schema_is_refused(store):
    store.append(make_record())
    values = json.loads(store.path.read_text())
    store.path.write_text(json.dumps({**values, "schema": 1}) + "\n")
    with pytest.raises(UsageError, match="schema 1 and this version reads schema 2"):
        loaded(store)


def test_a_config_edited_by_hand_is_refused(store):
    store.append(make_record(seed=0))
    store.path.write_text(store.path.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(UsageError, match="line 1 was changed"):
        loaded(store)


EPOCH = asdict(make_record().epochs[-1])


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": []},
        {"shifted": None},
        {"shifted": {"trained": {"clean": 0.9}}},
        {"shifted": {"trained": dict.fromkeys(CONDITIONS, 7.5)}},
        {"shifted": []},
        {"diverged": "no"},
        {"seconds": "2.5"},
        {"seconds": float("nan")},
        {"device": 3},
        {"environment": {"torch": 2}},
        {"calibration": {"bn1": {"center_weight": 0.0}}},
        {"channel_mean_std": {"bn1": "0.1"}},
        {"epochs": [EPOCH | {"test_accuracy": 7.5}]},
        {"epochs": [EPOCH | {"test_accuracy": float("nan")}]},
        {"epochs": [EPOCH | {"test_accuracy": True}]},
        {"epochs": [3]},
    ],
)
def test_a_record_of_other_fields_is_refused(store, change):
    store.append(make_record())
    values = {**json.loads(store.path.read_text()), **change}
    store.path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}) + "\n")
    with pytest.raises(UsageError, match="line 1 is no record"):
        loaded(store)


def test_a_line_nested_too_deeply_is_named(store):
    store.path.write_bytes(b'{"schema": ' + b"[" * 100_000 + b"\n")
    with pytest.raises(UsageError, match="line 1 is no record"):
        loaded(store)


def test_the_committed_records_are_read():
    results = Path(__file__).parents[2] / "results"
    for path in results.rglob("records.jsonl"):
        assert len(Store(path.parent).records) == path.read_bytes().count(b"\n")


FULL = """
import resource, signal, sys
from pathlib import Path
from support import make_record
from rbnorm_lab.store import Store

store = Store(Path(sys.argv[1]))
store.append(make_record(seed=0))
size = store.path.stat().st_size
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
try:
    store.append(make_record(seed=1))
except ValueError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
assert store.path.stat().st_size == size
store.append(make_record(seed=1))
"""


def test_a_full_disk_is_said_and_costs_no_record(store, tmp_path):
    done = execute([sys.executable, "-c", FULL, tmp_path], Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    assert "records.jsonl cannot be written (File too large): make room" in done.stdout
    assert [record.config.seed for record in loaded(store).values()] == [0, 1]


def test_a_failure_is_loaded_as_it_was(tmp_path):
    failure = Failure(CONFIG, "ValueError: no", "trace", {"torch": "2"}, "2026-01-01")
    Store(tmp_path).append(failure)
    assert list(Store(tmp_path).failures.values()) == [failure]


def _append(folder, seeds):
    for seed in seeds:
        Store(folder).append(make_record(seed=seed))


def test_processes_that_append_at_once_lose_and_double_nothing(store):
    context = multiprocessing.get_context("spawn")
    shares = [range(30), range(15, 45)]
    writers = [context.Process(target=_append, args=(store.path.parent, s)) for s in shares]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(r.config.seed for r in loaded(store).values()) == list(range(45))
    assert store.path.read_bytes().count(b"\n") == 45


def test_a_number_that_is_not_finite_is_none():
    assert [number(float(text)) for text in ("nan", "inf", "0.5")] == [None, None, 0.5]
