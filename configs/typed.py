"""From plain values, as YAML gives them, to a frozen dataclass whose annotations say what each key may be."""

import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from configs.refusal import Refusal, nearest, quoted, short

FLOAT32_MAX = 3.4e38


@dataclass(frozen=True)
class Range:
    """The numbers that a key may take: at least `low` (above it if `open_low`), and below `below`."""

    low: float
    open_low: bool = False
    below: float = float("inf")

    def __contains__(self, x: float) -> bool:
        return (x > self.low if self.open_low else x >= self.low) and x < self.below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return low if self.below == float("inf") else f"{low} and below {self.below:g}"


def build(cls: type, tree: Mapping, prefix: str = "") -> Any:
    """An object of the dataclass `cls` from the keys of `tree`. Raises Refusal, naming the dotted key."""
    hints = get_type_hints(cls, include_extras=True)
    for key in tree:
        if key not in hints:
            raise Refusal(f"unknown key {prefix}{short(str(key))}{nearest(key, list(hints))}")
    values = {}
    for field in fields(cls):
        if field.name in tree:
            values[field.name] = _value(hints[field.name], tree[field.name], prefix + field.name)
        elif field.default is MISSING:
            raise Refusal(f"the key {prefix}{field.name} is missing")
    return cls(**values)


def names(cls: type) -> list[str]:
    """The keys of a dataclass."""
    return [field.name for field in fields(cls)]


def _value(hint: Any, value: Any, key: str) -> Any:
    """`value` as the type `hint`. Raises Refusal with the key, the value and what would be right."""
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise Refusal(
                f"{key} must be a mapping with the keys {', '.join(names(hint))}, not {quoted(value)}"
            )
        return build(hint, value, f"{key}.")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # an optional key
        return None if value is None else _value(arguments[0], value, key)
    if origin is Annotated:
        number = _value(arguments[0], value, key)
        if number not in arguments[1]:
            raise Refusal(f"{key} is {quoted(value)}; it must be {arguments[1]}")
        return number
    if origin is Literal:
        if value not in arguments or type(value) not in map(type, arguments):
            words = [str(choice) for choice in arguments]
            raise Refusal(
                f"{key} is {quoted(value)}; it must be one of {', '.join(words)}{nearest(value, words)}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise Refusal(f"{key} is {quoted(value)}; it must be a list")
        return tuple(_value(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    return _scalar(hint, value, key)


def _scalar(kind: type, value: Any, key: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= FLOAT32_MAX:
            raise Refusal(f"{key} is {quoted(value)}; it must be a number that float32 can hold")
        return float(value)
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    hint = ""
    if kind in (int, float) and isinstance(value, str):
        with suppress(InvalidOperation):  # YAML 1.1 reads 1e-4 as text
            number = Decimal(value)
            hint = f" (YAML reads {value} as text: write {number:f})" if number.is_finite() else ""
    raise Refusal(f"{key} is {quoted(value)}, a {type(value).__name__}; it must be a {kind.__name__}{hint}")
