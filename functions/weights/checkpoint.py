"""What a checkpoint is, whatever its file format."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from configs.refusal import Refusal


@dataclass
class Checkpoint:
    """`None` where a format has no such part. Parameter names are those of models/unet.py."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None  # torch's optimizer state dict
    epoch: int = 0
    step: int = 0
    images_seen: int = 0  # of this epoch
    seed: int | None = None

    def select(self, which: str | None, source: str) -> tuple[dict[str, Tensor], str]:
        """The "ema" or "raw" weights (None: ema where there is one), and which they are, or "bare".

        Raises Refusal where they are not there; `source` names the file in it.
        """
        if which == "ema" and self.ema is None:
            raise Refusal(f"{source} has no EMA weights; --weights raw takes the ones it has")
        if which == "raw" or self.ema is None:
            return self.model, "bare" if self.optimizer is None else "raw"
        return self.ema, "ema"


def is_weights(value: Any) -> bool:
    """Whether `value` is a non-empty mapping of names to tensors."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )
