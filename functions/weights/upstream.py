"""Upstream's checkpoints, [model, optimizer, epoch, step, ema], and bare state dicts such as the converted DDPM weights."""

from typing import Any

from torch import Tensor

from functions.weights.checkpoint import Checkpoint, is_weights


def unpack(content: Any) -> Checkpoint | None:
    """The checkpoint, or None where `content` is another format's. A list of four has no EMA."""
    if is_weights(content):
        return Checkpoint(model=_without_prefix(content))
    if not isinstance(content, list | tuple) or len(content) not in (4, 5):
        return None
    model, optimizer, epoch, step, *ema = content
    well_formed = (
        is_weights(model) and isinstance(optimizer, dict) and isinstance(epoch, int) and isinstance(step, int)
    )
    if not well_formed or (ema and not is_weights(ema[0])):
        return None
    return Checkpoint(
        _without_prefix(model), _without_prefix(ema[0]) if ema else None, optimizer, epoch, step
    )


def pack(checkpoint: Checkpoint) -> list[Any]:
    """Upstream's list: of five, or of four without an EMA, as upstream itself writes it."""
    model = {f"module.{name}": value for name, value in checkpoint.model.items()}
    ema = [] if checkpoint.ema is None else [checkpoint.ema]
    return [model, checkpoint.optimizer, checkpoint.epoch, checkpoint.step, *ema]


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the network has them: DataParallel put `module.` in front."""
    return {name.removeprefix("module."): value for name, value in weights.items()}
