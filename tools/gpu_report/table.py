"""The report as text of few columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tools.gpu_report.options import Row

SHORT = {"contiguous": "nchw", "channels_last": "cl", "float32": "f32", "bfloat16": "bf16"}
SHORT |= {"float16": "f16", "training": "train", "inference": "eval"}


def of(step: str, rows: list[Row]) -> str:
    """The lines of one step, failures last."""
    mine = [row for row in rows if row["step"] == step]
    good = [row for row in mine if "failed" not in row and "left" not in row]
    lines = [f"== {step}", *_WRITERS.get(step, _plain)(good)]
    lines += [f"FAILED {row['case']}: {row['failed'][:300]}" for row in mine if "failed" in row]
    left = [row["case"] for row in mine if "left" in row]
    lines += [f"left out, no time: {len(left)} cases, from {left[0]}"] if left else []
    return "\n".join(lines)


def _plain(rows: list[Row]) -> list[str]:
    hidden = {"step", "profile"}
    return [" ".join(f"{k}={_cell(v)}" for k, v in row.items() if k not in hidden) for row in rows]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _where(row: Row) -> str:
    return " ".join(SHORT.get(row[k], str(row[k])) for k in ("mode", "dtype", "layout", "shape"))


def _grouped(rows: list[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _layers(rows: list[Row]) -> list[str]:
    """Each case: us of BatchNorm (the faster of two), and the others as ratios to it."""
    lines = ["case | graph: bn us, ratios; share of copy | eager: bn us, ratios"]
    for where, group in _grouped(rows, _where).items():
        parts = []
        for how in ("graph", "eager"):
            us = {row["subject"]: row["us"] for row in group if row["how"] == how}
            if us:
                parts.append(_ratios(us, group[0]["mode"], with_share=how == "graph"))
        lines.append(f"{where} | " + " | ".join(parts))
    return lines


def _ratios(us: dict[str, float], mode: str, *, with_share: bool) -> str:
    faster = min(us["batchnorm"], us.get("batchnorm native", us["batchnorm"]))
    others = [name for name in us if name not in {"batchnorm", "batchnorm native", "copy"}]
    text = f"bn {us['batchnorm']:.0f}/{us.get('batchnorm native', 0):.0f}"
    text += "".join(f" {name} {us[name] / faster:.2f}" for name in others)
    if with_share:
        copies = 4 if mode == "training" else 1
        share = {n: copies * us["copy"] / us[n] for n in ("batchnorm", "rbn") if n in us}
        text += "; of copy " + " ".join(f"{n} {value:.0%}" for n, value in share.items())
    return text


def _phases(rows: list[Row]) -> list[str]:
    """GB/s of every phase."""
    lines = []
    for where, group in _grouped([row for row in rows if "subject" in row], _where).items():
        speeds = " ".join(f"{row['subject']} {row['gb_per_s']:.0f}" for row in group)
        lines.append(f"{where.removeprefix('train ')} | GB/s {speeds}")
    return lines


def _correctness(rows: list[Row]) -> list[str]:
    wrong = [row for row in rows if not row["right"]]
    return [f"{len(rows) - len(wrong)} right, {len(wrong)} wrong", *_plain(wrong[:12])]


def _suite(rows: list[Row]) -> list[str]:
    counts = {k: len(v) for k, v in _grouped(rows, lambda row: row["outcome"]).items()}
    bad = [row for row in rows if row["outcome"] == "failed"]
    return [str(counts), *(f"{row['test']}: {row.get('error', '')[-250:]}" for row in bad[:10])]


def _overhead(rows: list[Row]) -> list[str]:
    groups = _grouped([row for row in rows if "us" in row], lambda row: row["subject"])
    return [
        f"{name}: " + ", ".join(f"{row['mode']} {row['us']:.0f} us" for row in group)
        for name, group in groups.items()
    ]


def _warm(rows: list[Row]) -> list[str]:
    slowest = max(rows, key=lambda row: row["seconds"], default=None)
    return [f"{len(rows)} cases", *([] if slowest is None else _plain([slowest]))]


_WRITERS: dict[str, Callable[[list[Row]], list[str]]] = {
    "layers": _layers,
    "phases": _phases,
    "correctness": _correctness,
    "suite": _suite,
    "overhead": _overhead,
    "warm": _warm,
}
