"""DDIM's update by a better ε, from several evaluations: PNDM (arXiv 2202.09778) and gradient estimation."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from functions.samplers.steps import CLEAN, Level, Model, RandnLike, Step, evaluate, level, levels, transfer

# Adams-Bashforth's weights of the last evaluations, the newest first, by their number.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@torch.no_grad()
def pndm(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    end: float = CLEAN,
    randn_like: RandnLike,
) -> Iterator[Step]:
    """F-PNDM (algorithm 2): Runge-Kutta of four evaluations for three steps, then the last four.

    Where only the end is left, Runge-Kutta would evaluate there, and DDIM's update is taken.
    """
    grid, known = levels(timesteps, alphas_cumprod, end), deque[Tensor](maxlen=4)
    for i, (here, there) in enumerate(pairwise(grid)):
        eps, x0 = evaluate(model, x, here)
        known.appendleft(eps)
        if len(known) == 4:
            eps = _combined(known)
        elif i < len(timesteps) - 1:
            middle = level(alphas_cumprod, (here.t + there.t) / 2)
            eps = _runge_kutta(model, x, eps, here, middle, there)
        x = transfer(x, eps, here, there)
        yield Step(here.t, x, x0)


def _runge_kutta(model: Model, x: Tensor, eps1: Tensor, here: Level, middle: Level, there: Level) -> Tensor:
    eps2, _ = evaluate(model, transfer(x, eps1, here, middle), middle)
    eps3, _ = evaluate(model, transfer(x, eps2, here, middle), middle)
    eps4, _ = evaluate(model, transfer(x, eps3, here, there), there)
    return (eps1 + 2 * eps2 + 2 * eps3 + eps4) / 6


def _combined(known: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * eps for w, eps in zip(ADAMS_BASHFORTH[len(known) - 1], known, strict=True)]).sum(
        0
    )


@torch.no_grad()
def plms(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    end: float = CLEAN,
    randn_like: RandnLike,
) -> Iterator[Step]:
    """PNDM with one more evaluation at the first step instead of nine, and orders 2 and 3 before 4."""
    grid, known = levels(timesteps, alphas_cumprod, end), deque[Tensor](maxlen=4)
    for i, (here, there) in enumerate(pairwise(grid)):
        eps, x0 = evaluate(model, x, here)
        known.appendleft(eps)
        if len(known) == 1 and i < len(timesteps) - 1:
            eps = (eps + evaluate(model, transfer(x, eps, here, there), there)[0]) / 2
        else:
            eps = _combined(known)
        x = transfer(x, eps, here, there)
        yield Step(here.t, x, x0)


@torch.no_grad()
def gradient(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    end: float = CLEAN,
    randn_like: RandnLike,
    gamma: float = 2.0,
) -> Iterator[Step]:
    """Gradient estimation (arXiv 2306.04848, algorithm 2): ε and the one before, γ ε_t + (1 - γ) ε_{t+1}."""
    before = None
    for here, there in pairwise(levels(timesteps, alphas_cumprod, end)):
        eps, x0 = evaluate(model, x, here)
        x = transfer(x, eps if before is None else gamma * eps + (1 - gamma) * before, here, there)
        before = eps
        yield Step(here.t, x, x0)


SAMPLERS = {"pndm": pndm, "plms": plms, "gradient": gradient}
