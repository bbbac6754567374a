"""Sentences in two languages."""

from collections.abc import Iterable
from dataclasses import dataclass


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
