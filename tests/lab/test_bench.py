"""The benchmark's rows; what they say of time is nobody's to test."""

import json
from pathlib import Path

import pytest

from rbnorm.lab import bench
from rbnorm.lab.cli import main


def test_rows_are_complete_and_ratios_are_of_medians(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    bench.bench(2, out, shapes=[(2, 3, 4, 4)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["candidate"] for row in rows] == list(bench.CANDIDATES) * 4
    for group in (rows[i : i + 3] for i in range(0, 12, 3)):
        for row in group:
            assert row["ratio_to_batchnorm"] == row["median_s"] / group[0]["median_s"]
            assert row["min_s"] <= row["median_s"] <= row["max_s"]
            assert row["shape"] == [2, 3, 4, 4]
    assert "geometric" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--repeats", "0"], ["--repeats", "x"], ["--out", "no-such-folder/rows.jsonl"]]
)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
