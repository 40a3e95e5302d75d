"""What the samplers share: the steps that they yield, the levels of noise between, and one evaluation."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from functions.schedules import alpha_bar

Model = Callable[[Tensor, Tensor], Tensor]
RandnLike = Callable[[Tensor], Tensor]

CLEAN = -1  # the label of a clean image, where ᾱ = 1


class Step(NamedTuple):
    """Timestep t, x after its update, and the x0 it predicted. The tensors are valid until the next step."""

    t: float
    x: Tensor
    x0: Tensor


def last(steps: Iterator[Step]) -> Step:
    """Run a sampler to its end."""
    return deque(steps, maxlen=1).pop()


class Level(NamedTuple):
    """A level of noise, x = α·x0 + σ·ε, in float64: α = √ᾱ_t, σ = √(1-ᾱ_t)."""

    t: float
    alpha: float
    sigma: float

    @property
    def rho(self) -> float:
        """ρ = σ/α, in which the ODE is d(x/α) = ε dρ."""
        return self.sigma / self.alpha

    @property
    def lam(self) -> float:
        """λ = log(α/σ), half the log of the signal-to-noise ratio; infinite for a clean image."""
        return math.log(self.alpha / self.sigma) if self.sigma else math.inf


def level(alphas_cumprod: Tensor, t: float) -> Level:
    """The level of timestep t, which may lie between two, or is CLEAN."""
    log_a = math.log(alpha_bar(alphas_cumprod.double(), t))
    return Level(t, math.exp(log_a / 2), math.sqrt(-math.expm1(log_a)))


def levels(timesteps: Sequence[float], alphas_cumprod: Tensor, end: float) -> list[Level]:
    """The levels of τ from the noisiest on, and that of `end` behind them."""
    return [level(alphas_cumprod, t) for t in (*reversed(timesteps), end)]


def label(x: Tensor, t: float) -> Tensor:
    """t as the network takes it: (b,), int64 where it is whole and float32 between."""
    return x.new_full((len(x),), t, dtype=torch.long if t == int(t) else torch.float32)


def evaluate(model: Model, x: Tensor, at: Level) -> tuple[Tensor, Tensor]:
    """ε that the network sees in x, and the x0 that follows from it. One evaluation."""
    eps = model(x, label(x, at.t))
    return eps, (x - at.sigma * eps) / at.alpha


def transfer(x: Tensor, eps: Tensor, here: Level, there: Level) -> Tensor:
    """DDIM's deterministic update by the given ε (arXiv 2010.02502, equation 12 with σ = 0)."""
    return there.alpha * ((x - here.sigma * eps) / here.alpha) + there.sigma * eps


def usable_order(order: int, known: int, left: int, there: Level, lower_order_final: bool) -> int:
    """The order of a multistep update: as many evaluations as are known, fewer at the last steps.

    left: the steps to the end, this one included. At a clean image λ is infinite, and order 1 is x0 itself.
    """
    if not there.sigma:
        return 1
    return min(order, known, left) if lower_order_final else min(order, known)
