"""Upstream's checkpoints: a list [model, optimizer, epoch, step, ema]. Without an EMA the last is missing."""

from typing import Any

from torch import Tensor

from functions.weights.checkpoint import Checkpoint, is_weights


def unpack(content: Any) -> Checkpoint | None:
    """The checkpoint, or None if `content` has another format."""
    match content:
        case [model, dict(optimizer), int(epoch), int(step)] if is_weights(model):
            return Checkpoint(without_prefix(model), None, optimizer, epoch, step)
        case [model, dict(optimizer), int(epoch), int(step), ema] if is_weights(model) and is_weights(ema):
            return Checkpoint(without_prefix(model), without_prefix(ema), optimizer, epoch, step)
    return None


def pack(checkpoint: Checkpoint) -> list[Any]:
    """The list that upstream's program reads."""
    model = {f"module.{name}": value for name, value in checkpoint.model.items()}
    whole = [model, checkpoint.optimizer, checkpoint.epoch, checkpoint.step]
    return whole if checkpoint.ema is None else [*whole, checkpoint.ema]


def without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names as the network has them: DataParallel puts `module.` before each."""
    return {name.removeprefix("module."): value for name, value in weights.items()}
