"""Upstream's checkpoints: a list [model, optimizer, epoch, step, ema]. Without an EMA the last is missing."""

from typing import Any

from functions.weights.checkpoint import Checkpoint, is_weights
from functions.weights.wrappers import unwrapped


def unpack(content: Any) -> Checkpoint | None:
    """The checkpoint, or None if `content` has another format."""
    match content:
        case [model, dict(optimizer), int(epoch), int(step), *more] if is_weights(model):
            averages = [unwrapped(part) for part in more if is_weights(part)]  # forks append other states too
            if len(averages) == min(1, len(more)):
                ema = averages[0] if averages else None
                return Checkpoint(unwrapped(model), ema, optimizer, epoch, step)
    return None


def pack(checkpoint: Checkpoint) -> list[Any]:
    """The list that upstream's program reads."""
    model = {f"module.{name}": value for name, value in checkpoint.model.items()}
    whole = [model, checkpoint.optimizer, checkpoint.epoch, checkpoint.step]
    return whole if checkpoint.ema is None else [*whole, checkpoint.ema]
