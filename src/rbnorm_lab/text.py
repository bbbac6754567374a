"""Sentences in two languages, and how numbers stand in them."""

from collections.abc import Iterable
from dataclasses import dataclass

from rbnorm_lab.statistics import Estimate


@dataclass(frozen=True)
class Text:
    """The same sentence in English and Chinese."""

    en: str
    zh: str


def same(text: str) -> Text:
    """A name, number or path that both languages write alike."""
    return Text(text, text)


def joined(texts: Iterable[Text], en: str = "; ", zh: str = "；") -> Text:
    """Texts one after the other."""
    parts = list(texts)
    return Text(en.join(part.en for part in parts), zh.join(part.zh for part in parts))


def signed(value: float) -> str:
    """A number with its sign and two digits, the minus a true one."""
    return f"{value:+.2f}".replace("-", "−")


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return signed(100 * value)


def percent(share: float | None) -> str:
    """A share in percent, or a dash where there is none."""
    return "–" if share is None else f"{100 * share:.2f}"


def with_margin(estimate: Estimate | None, digits: int = 2) -> str:
    """A share in percent, with half the width of its interval."""
    if estimate is None:
        return "–"
    margin = "n/a" if estimate.margin is None else f"{100 * estimate.margin:.{digits}f}"
    return f"{100 * estimate.mean:.{digits}f} ± {margin}"


def interval(estimate: Estimate) -> str:
    """The interval of a difference of shares in percentage points."""
    ends = ["n/a"] if estimate.interval is None else map(points, estimate.interval)
    return f"[{', '.join(ends)}]"


def bracketed(estimate: Estimate) -> str:
    """A difference of shares in percentage points with its interval, in any language."""
    return f"{points(estimate.mean)} {interval(estimate)}"


def p_value(p: float | None) -> str:
    """A p value, or n/a."""
    if p is None:
        return "n/a"
    return "<0.001" if p < 0.001 else f"{p:.3f}"
