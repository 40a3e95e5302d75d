"""What came of a cell of a grid, or of a single folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.options import Options
from functions.metrics.metrics import Number
from runners.evaluation import measurements


@dataclass(frozen=True)
class Result:
    """A cell: options, the checkpoint's name and step (0 if unknown), cost, size, the measurement."""

    options: Options
    checkpoint: str
    step: int
    evaluated: int  # timesteps of τ
    evaluations: int  # of the network for an image (NFE)
    n: int  # chains
    measured: dict[str, Any] | None
    own: dict[str, Number] = field(default_factory=dict)  # the task's, and what they are
    note: str = ""

    @property
    def folder(self) -> Path:
        return self.options.image_dir

    @property
    def numbers(self) -> dict[str, Number]:
        """All that was measured, by name."""
        return (measurements.numbers(self.measured) if self.measured else {}) | self.own
