"""The program's own checkpoints: one dict of tensors and plain values, marked by FORMAT."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from functions import files
from functions.weights.checkpoint import Checkpoint, is_weights

FORMAT = "ddim-checkpoint-1"


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file; it appears whole."""
    content = {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    with files.atomic(path) as temporary:
        torch.save({"format": FORMAT, **content}, temporary)


def unpack(content: Any) -> Checkpoint | None:
    """The checkpoint, or None where `content` is another format's."""
    if not isinstance(content, dict) or content.get("format") != FORMAT or not is_weights(content.get("model")):
        return None
    return Checkpoint(**{field.name: content[field.name] for field in fields(Checkpoint)})
