"""Files are written whole, with the mode they should have, and nothing is left behind."""

import os
import stat
import time

import pytest
import torch

from rbnorm.models.files import SUFFIXES, packed, parse_json, read_state, replace


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Sets the umask, and afterwards what it was."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_that_the_umask_leaves(umask, tmp_path, mask, expected):
    umask(mask)
    replace(tmp_path / "a", b"new")
    assert mode(tmp_path / "a") == expected


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o666])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, kept):
    path = tmp_path / "a"
    path.touch()
    path.chmod(kept)
    replace(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", kept)


def test_what_a_kill_left_unfinished_is_removed_by_the_next_write(tmp_path):
    left = tmp_path / ".a.0123abcd.part"
    young = tmp_path / ".a.89abcdef.part"
    others = [tmp_path / name for name in (".a.part", ".a.0123abcd", ".b.0123abcd.part", "a.part")]
    hour_ago = time.time() - 3600
    for path in (left, young, *others):
        path.touch()
        if path != young:  # which somebody may be writing
            os.utime(path, (hour_ago, hour_ago))
    replace(tmp_path / "a", b"new")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a", young, *others])


def test_a_write_that_fails_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        replace(tmp_path / "a", b"new")
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, b"[" * 100_000])
def test_json_nested_too_deeply_is_no_json(text):
    with pytest.raises(ValueError, match=r"nested too deeply|line 1"):
        parse_json(text)


ODD = {
    "sparse": (lambda: torch.eye(2).to_sparse(), "sparse or nested"),
    "rows": (lambda: torch.eye(2).to_sparse_csr(), "sparse or nested"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "sparse or nes"),
    "meta": (lambda: torch.empty(2, device="meta"), "on the device meta, which has no memory"),
    "expanded": (lambda: torch.ones(1).expand(2**40), "4 bytes repeated to 4398046511104"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), None),
    "bits": (lambda: torch.zeros(2, dtype=torch.uint8).view(torch.bits8), None),
    "half complex": (lambda: torch.zeros(2, 2).half().view(torch.complex32), None),
}


@pytest.mark.filterwarnings("ignore")  # about prototypes
@pytest.mark.parametrize("name", ODD)
def test_an_odd_tensor_is_refused(name):
    make, message = ODD[name]
    said = f"entry 'odd' is {message}" if message else "has an entry that safetensors cannot hold"
    with pytest.raises(ValueError, match=said):
        packed({"plain": torch.ones(2), "odd": make()})


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool]
)
def test_plain_tensors_come_back(dtype, suffix, tmp_path):
    state = {"a": torch.ones(2, dtype=dtype), "b": torch.ones(1).expand(9), "c": torch.ones([])}
    path = tmp_path / f"state{suffix}"
    path.write_bytes(packed(state, suffix))
    found = read_state(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[n].double(), state[n].double()) for n in state)


def test_the_name_that_safetensors_keeps_for_itself_is_refused():
    with pytest.raises(ValueError, match="'__metadata__' has the name that safetensors keeps"):
        packed({"__metadata__": torch.ones(1)})
