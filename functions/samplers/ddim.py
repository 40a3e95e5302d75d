"""DDIM and DDPM, to the bit as the paper's own program has them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from functions.samplers.steps import CLEAN, Model, RandnLike, Step, label
from functions.schedules import alpha_bar


@torch.no_grad()
def generalized(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    eta: float,
    end: float = CLEAN,
    randn_like: RandnLike,
) -> Iterator[Step]:
    """DDIM (arXiv 2010.02502, equations 12 and 16): eta 0 is deterministic, 1 is DDPM. x0 is not clipped."""
    for t, t_next in pairwise([*reversed(timesteps), end]):
        a, a_next = alpha_bar(alphas_cumprod, t), alpha_bar(alphas_cumprod, t_next)
        eps = model(x, label(x, t))
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        sigma = eta * ((1 - a / a_next) * (1 - a_next) / (1 - a)).sqrt()
        # At eta 1 rounding can bring the difference a hair below zero.
        x = a_next.sqrt() * x0 + (1 - a_next - sigma**2).clamp(min=0).sqrt() * eps
        if eta > 0:
            x = x + sigma * randn_like(x)
        yield Step(t, x, x0)


@torch.no_grad()
def ddpm_noisy(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    clip_x0: str = "on",
    end: float = CLEAN,
    randn_like: RandnLike,
) -> Iterator[Step]:
    """DDPM with the larger variance σ̂ (2010.02502, section 5.1; 2006.11239, algorithm 2). "on" clips x0."""
    for t, t_next in pairwise([*reversed(timesteps), end]):
        a, a_next = alpha_bar(alphas_cumprod, t), alpha_bar(alphas_cumprod, t_next)
        beta = 1 - a / a_next
        eps = model(x, label(x, t))
        x0 = (1 / a).sqrt() * x - (1 / a - 1).sqrt() * eps
        if clip_x0 == "on":
            x0 = x0.clamp(-1, 1)
        mean = (a_next.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - a_next) * x) / (1 - a)
        noise = randn_like(x)
        x = mean + beta.sqrt() * noise if t_next != CLEAN else mean
        yield Step(t, x, x0)


SAMPLERS = {"generalized": generalized, "ddpm_noisy": ddpm_noisy}
