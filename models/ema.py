"""The moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """shadow ← rate·shadow + (1 - rate)·param at each update. It begins as a copy of the parameters.

    warmup: after n updates the rate is at most (1 + n)/(10 + n), to forget the first weights soon.
    """

    def __init__(self, model: nn.Module, rate: float, warmup: bool = False):
        self.rate, self.warmup = rate, warmup
        self.shadow = {name: param.detach().clone() for name, param in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, n: int = 0) -> None:
        """Move the average towards the model, by one fused call. n: the updates before this one."""
        rate = min(self.rate, (1 + n) / (10 + n)) if self.warmup else self.rate
        torch._foreach_lerp_(list(self.shadow.values()), list(model.parameters()), 1 - rate)

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
