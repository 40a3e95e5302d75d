"""What a checkpoint is, whatever its file format."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from configs.refusal import Refusal


@dataclass
class Checkpoint:
    """The parameters have the names of models/unet.py. A part is `None` if the file has none."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None  # torch's optimizer state dict
    epoch: int = 0
    step: int = 0
    images_seen: int = 0  # of this epoch
    seed: int | None = None

    def select(self, wanted: str | None, source: str) -> tuple[dict[str, Tensor], str]:
        """The weights and their kind: "ema", "raw", or "bare" for the only weights of a file.

        wanted: "ema" or "raw"; None takes the EMA if there is one. Raises Refusal if there is no EMA to take.
        """
        if wanted == "raw" and self.ema is self.model:
            raise Refusal(f"{source} has EMA weights only; leave --weights out to take them")
        if wanted == "ema" and self.ema is None:
            raise Refusal(f"{source} has no EMA weights; --weights raw takes the ones it has")
        if wanted == "raw" or self.ema is None:
            return self.model, "bare" if self.optimizer is None and self.ema is None else "raw"
        return self.ema, "ema"


def checkpoint_of(raw: dict[str, Tensor] | None, ema: dict[str, Tensor] | None) -> Checkpoint:
    """Of the sets that a file has, at least one; without a raw one the average stands for both."""
    weights = raw if raw is not None else ema
    assert weights is not None
    return Checkpoint(weights, ema)


def is_weights(value: Any) -> bool:
    """Whether `value` is a state dict: names and their tensors, at least one."""
    items = value.items() if isinstance(value, dict) else ()
    return bool(items) and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in items)
