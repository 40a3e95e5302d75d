"""docs/config.md lists every key of a config with its type, range and default, as the program has them."""

import types
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from support.program import ROOT

from configs import Config

WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def kind_and_range(hint: Any) -> tuple[str, str]:
    """A type and its range in words."""
    if get_origin(hint) in (Union, types.UnionType):
        return kind_and_range(get_args(hint)[0])
    if get_origin(hint) is Annotated:
        kind, bounds = get_args(hint)
        return WORDS[kind], str(bounds)
    if get_origin(hint) is Literal:
        return "one of", ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is tuple:
        kind, bounds = kind_and_range(get_args(hint)[0])
        return f"list of {kind}s", bounds
    return WORDS[hint], ""


def rows() -> list[tuple[str, str, str, str]]:
    """(section.key, type, range, default) for every key."""
    found = []
    for section, cls in get_type_hints(Config).items():
        hints = get_type_hints(cls, include_extras=True)
        for field in fields(cls):
            kind, bounds = kind_and_range(hints[field.name])
            default = (
                "needed"
                if field.default is MISSING
                else "none"
                if field.default is None
                else str(field.default)
            )
            found.append((f"{section}.{field.name}", kind, bounds, default))
    return found


def test_every_key_has_its_row_and_no_row_is_too_many():
    section, found = "", []
    for line in (ROOT / "docs" / "config.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| `"):
            key, kind, bounds, default, what = (cell.strip() for cell in line.strip("|").split("|"))
            found.append((f"{section}.{key.strip('`')}", kind, bounds, default))
            assert what
    assert found == rows()
