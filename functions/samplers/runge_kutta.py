"""The probability-flow ODE by Euler's and Heun's steps, without a history."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from functions.samplers.steps import CLEAN, Model, RandnLike, Step, evaluate, levels, transfer


@torch.no_grad()
def euler(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    end: float = CLEAN,
    randn_like: RandnLike,
) -> Iterator[Step]:
    """Euler's steps in (1-ᾱ)/ᾱ = ρ² (arXiv 2010.02502, equation 15). DDIM's are those in ρ."""
    for here, there in pairwise(levels(timesteps, alphas_cumprod, end)):
        eps, x0 = evaluate(model, x, here)
        x = there.alpha * (x / here.alpha + (there.rho**2 - here.rho**2) / (2 * here.rho) * eps)
        yield Step(here.t, x, x0)


@torch.no_grad()
def heun(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    end: float = CLEAN,
    randn_like: RandnLike,
) -> Iterator[Step]:
    """Heun's steps in ρ (arXiv 2206.00364, algorithm 1): two evaluations each, but for the last one."""
    grid = levels(timesteps, alphas_cumprod, end)
    for here, there in pairwise(grid):
        eps, x0 = evaluate(model, x, here)
        if there is not grid[-1]:
            eps = (eps + evaluate(model, transfer(x, eps, here, there), there)[0]) / 2
        x = transfer(x, eps, here, there)
        yield Step(here.t, x, x0)


SAMPLERS = {"euler": euler, "heun": heun}
