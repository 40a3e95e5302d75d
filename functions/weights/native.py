"""This program's own checkpoints: one dict of tensors and plain values, marked by FORMAT."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from functions.weights import storage
from functions.weights.checkpoint import Checkpoint, is_weights

FORMAT = "ddim-checkpoint-1"
_NAMES = [field.name for field in fields(Checkpoint)]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file; it appears whole. Raises OSError if the disk does not take it."""
    storage.save(path, {"format": FORMAT, **{name: getattr(checkpoint, name) for name in _NAMES}})


def unpack(content: Any) -> Checkpoint | None:
    """The checkpoint, or None if `content` has another format."""
    marked = isinstance(content, dict) and content.get("format") == FORMAT
    if not marked or content.keys() != {"format", *_NAMES} or not is_weights(content["model"]):
        return None
    match content:
        case {
            "ema": dict() | None as ema, "optimizer": dict() | None, "epoch": int(), "step": int(),
            "images_seen": int(), "seed": int() | None,
        } if ema is None or is_weights(ema):  # fmt: skip
            return Checkpoint(**{name: content[name] for name in _NAMES})
    return None
