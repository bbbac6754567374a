"""What the norms cost, from the committed rows of ``rbnorm bench --parts norms``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rbnorm_lab.bench.cases import BASELINE, Row, cases
from rbnorm_lab.bench.networks import SMALL_MODEL
from rbnorm_lab.bench.rows import load
from rbnorm_lab.text import Text

PART: Final = "norms"
MODES: Final = ("training", "inference")


def norms_of(results: Path) -> dict[str, dict[str, Row]]:
    """The rows by mode and norm.

    Args:
        results: Folder of the studies, which has them in ``bench``.
    """
    rows, _ = load(results / "bench")
    own = [row for row in rows if row.part == PART]
    return {by_candidate[BASELINE].mode: by_candidate for by_candidate in cases(own)}


def ratios(norms: dict[str, dict[str, Row]], norm: str) -> str:
    """Of a training step and of inference, over BatchNorm's."""
    return " / ".join(f"{norms[mode][norm].ratio_to_batchnorm:.2f}" for mode in MODES)


def sentence(results: Path) -> Text:
    """RBN's costs next to BatchNorm's, and whose training step costs least and most.

    Args:
        results: As in :func:`norms_of`.
    """
    norms = norms_of(results)
    steps = norms["training"]
    ours, base = steps["rbn"], steps[BASELINE]
    step, inference = (_times(norms[mode]) for mode in MODES)
    saved, peak, more = (
        _pair(ours, base, name) for name in ("saved_bytes", "peak_bytes", "parameters")
    )
    kept, most = (f"{own / of:.2f}" for own, of in (saved, peak))
    added = f"{more[0] - more[1]:,} ({(more[0] - more[1]) / more[1]:.1%})"
    cheapest = sorted(steps.values(), key=lambda row: row.median_s)
    least, dearest = (
        f"{row.candidate} ({row.ratio_to_batchnorm:.2f})" for row in (cheapest[0], cheapest[-1])
    )
    return Text(
        f"In {SMALL_MODEL}, a training step with RBN takes {step} times as long as with BatchNorm "
        f"and inference {inference} times (medians and quartiles), keeps {kept} times as many "
        f"bytes for the backward pass at {most} times the peak memory, and adds {added} "
        f"parameters; the cheapest training step is that of {least}, the dearest that of "
        f"{dearest}.",
        f"在 {SMALL_MODEL} 中，与 BatchNorm 相比，RBN 的训练步耗时为 {step} 倍，推理耗时为 "
        f"{inference} 倍（中位数与四分位数），为反向传播保存的字节数为 {kept} 倍，峰值内存为 "
        f"{most} 倍，参数增加 {added} 个；训练步最省时的是 {least}，最费时的是 {dearest}。",
    )


def _times(by_norm: dict[str, Row]) -> str:
    """RBN's median over BatchNorm's, with both quartiles over BatchNorm's median."""
    ours, median = by_norm["rbn"], by_norm[BASELINE].median_s
    own = (ours.median_s, ours.q1_s, ours.q3_s)
    value, low, high = (f"{seconds / median:.2f}" for seconds in own)
    return f"{value} [{low}, {high}]"


def _pair(ours: Row, base: Row, name: str) -> tuple[int, int]:
    return int(getattr(ours, name)), int(getattr(base, name))
