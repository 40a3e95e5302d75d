"""The moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """shadow ← rate·shadow + (1 - rate)·param at each update. It begins as a copy of the parameters."""

    def __init__(self, model: nn.Module, rate: float):
        self.rate = rate
        self.shadow = {name: param.detach().clone() for name, param in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model, by one fused call."""
        torch._foreach_lerp_(list(self.shadow.values()), list(model.parameters()), 1 - self.rate)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        for name, shadow in self.shadow.items():
            shadow.copy_(weights[name])

    @contextmanager
    def average_weights(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights inside the block, and its own after it."""
        own = [param.data for param in model.parameters()]
        for param, shadow in zip(model.parameters(), self.shadow.values(), strict=True):
            param.data = shadow
        try:
            yield
        finally:
            for param, data in zip(model.parameters(), own, strict=True):
                param.data = data
