"""The program's own checkpoints: one dict of tensors and plain values, marked by FORMAT."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from functions.weights import storage
from functions.weights.checkpoint import Checkpoint, is_weights

FORMAT = "ddim-checkpoint-1"


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file; it appears whole. Raises OSError where the disk does not take it."""
    storage.save(
        path,
        {"format": FORMAT, **{field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}},
    )


def unpack(content: Any) -> Checkpoint | None:
    """The checkpoint, or None where `content` is another format's."""
    names = {field.name for field in fields(Checkpoint)}
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or content.keys() != names | {"format"}
    ):
        return None
    if not is_weights(content["model"]) or not (content["ema"] is None or is_weights(content["ema"])):
        return None
    return Checkpoint(**{name: content[name] for name in names})
