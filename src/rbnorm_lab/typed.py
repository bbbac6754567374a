"""Dataclasses from JSON, field by field: what has another type is refused by name."""

import math
import types
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def build(kind: type[T], values: Any) -> T:
    """An object of a dataclass, or of one with a ``from_dict`` of its own.

    Args:
        kind: The dataclass; its fields are plain values, tuples, dicts and such dataclasses.
        values: What JSON says of it.

    Raises:
        ValueError: A field is missing, unknown, of another type or not finite, or a value out of
            range.
    """
    own = getattr(kind, "from_dict", None)
    if own:
        return cast(T, own(values))
    assert is_dataclass(kind)
    names = {field.name for field in fields(kind)}
    if values.keys() != names:
        odd = ", ".join(sorted(values.keys() ^ names))
        raise ValueError(f"it has not exactly the fields of a {kind.__name__}: {odd}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(name, hints[name], value) for name, value in values.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        hint = next((part for part in parts if _fits(part, value)), parts[0])
        return _value(name, hint, value)
    if not _fits(hint, value):
        raise ValueError(f"its {name} is {value!r:.60}, which is no {_words(hint)}")
    if origin is tuple:
        return tuple(_value(name, parts[0], item) for item in value)
    if origin is dict:
        return {key: _value(name, parts[1], item) for key, item in value.items()}
    return build(cast(type[Any], hint), value) if is_dataclass(hint) else value


def _fits(hint: Any, value: Any) -> bool:
    plain = get_origin(hint) or hint
    if is_dataclass(plain):
        return isinstance(value, dict)
    if plain is float:
        return isinstance(value, float) and math.isfinite(value)
    if plain is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, list if plain is tuple else plain)


def _words(hint: Any) -> str:
    return "finite number" if hint is float else str(getattr(hint, "__name__", hint))
