"""The network's weights in whatever other programs put around them: dicts in dicts, and prefixes of names.

torch.compile, DataParallel, Lightning and classes that hold a network prefix each name, one over another.
Only this module removes that.
"""

import logging
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from configs.refusal import Refusal

MARK = "temb.dense.0.weight"  # every network of models/unet.py has it
_AVERAGE = re.compile(r"(?:^|[^a-z])(?:ema|avg|average|averaged|swa|shadow)(?:$|[^a-z])", re.IGNORECASE)
_DEPTH = 3  # of dicts and lists in one another


class Weights(NamedTuple):
    """A raw and an averaged set, one of which may be None."""

    raw: dict[str, Tensor] | None
    ema: dict[str, Tensor] | None


def unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names as the network has them, where all have the same prefix; else as they are."""
    prefixes = [name.removesuffix(MARK) for name in weights if name.endswith(MARK)]
    if len(prefixes) != 1 or not all(name.startswith(prefixes[0]) for name in weights):
        return weights
    return {name.removeprefix(prefixes[0]): value for name, value in weights.items()}


def find(content: Any, source: str) -> Weights | None:
    """The network's weights anywhere in `content`; None without any. Raises Refusal if it is not clear."""
    sets = dict(_sets(content, "", _DEPTH))
    raw = {place: weights for place, weights in sets.items() if not _AVERAGE.search(place)}
    ema = {place: weights for place, weights in sets.items() if place not in raw}
    for kind, found in (("networks", raw), ("averages", ema)):
        if len(found) > 1:
            places = ", ".join(repr(place) for place in found)
            raise Refusal(f"{source} holds {len(found)} {kind}, {places}; save the one you mean by itself")
    if not sets:
        return None
    weights = Weights(*(next(iter(found.values()), None) for found in (raw, ema)))
    if weights.raw is not None and weights.ema is None:
        weights = weights._replace(ema=_average_without_names(content, weights.raw, source))
    return weights


def _average_without_names(content: Any, raw: dict[str, Tensor], source: str) -> dict[str, Tensor] | None:
    """An average kept as a list in the order of the parameters, such as shadow_params, where one fits `raw`.

    Raises Refusal where several do.
    """
    lists = dict(_lists(content, "", _DEPTH))
    shapes = [value.shape for value in raw.values()]
    fitting = {place: tensors for place, tensors in lists.items() if [t.shape for t in tensors] == shapes}
    if len(fitting) > 1:
        places = ", ".join(map(repr, fitting))
        raise Refusal(f"{source} holds {len(fitting)} averages, {places}; save the one you mean by itself")
    for place in lists.keys() - fitting.keys():
        logging.warning(
            f"{source}: {place!r} is left out: its tensors are not those of the network, in order"
        )
    for place, tensors in fitting.items():
        logging.info(f"{source}: {place!r} is taken as the average, in the order of the network's parameters")
        return dict(zip(raw, tensors, strict=True))
    return None


def _lists(content: Any, place: str, depth: int) -> Iterator[tuple[str, list[Tensor]]]:
    """Each list of tensors, and where it is."""
    inside = content
    if isinstance(content, list | tuple):
        if content and all(isinstance(value, Tensor) for value in content):
            yield place.rstrip("."), list(content)
        inside = dict(enumerate(content))
    for key, value in inside.items() if depth and isinstance(inside, dict) else ():
        yield from _lists(value, f"{place}{key}.", depth - 1)


def describe(content: Any) -> str:
    """What a file holds, in words: the keys of a dict, the length of a list, else the type."""
    if isinstance(content, dict):
        keys = [repr(key) for key in content]
        return f"a dict with the keys {', '.join(keys[:8])}{', …' if len(keys) > 8 else ''}"
    if isinstance(content, list | tuple):
        return f"a {type(content).__name__} of {len(content)}"
    return f"a {type(content).__name__}"


def _sets(content: Any, place: str, depth: int) -> list[tuple[str, dict[str, Tensor]]]:
    """Each set of weights of the network: where it is, and the set by the network's names."""
    items = content.items() if isinstance(content, dict) else ()
    tensors = {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}
    prefixes = [name.removesuffix(MARK) for name in tensors if name.endswith(MARK)]
    found = []
    for prefix in prefixes:
        inside = [other for other in prefixes if other != prefix and other.startswith(prefix)]
        weights = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix) and not any(name.startswith(other) for other in inside)
        }
        found.append((f"{place}{prefix}".rstrip("."), weights))
    for key, value in items if depth else ():
        if isinstance(value, dict):
            found += _sets(value, f"{place}{key}.", depth - 1)
    return found
