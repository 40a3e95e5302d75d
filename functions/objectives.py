"""What the network is trained to predict, and the loss. Samplers and the bound see ε alone."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from functions.samplers import Model

QUARTERS = 4


class Prediction(NamedTuple):
    """What a network gives for x_t = √a·x0 + √(1-a)·ε, a = ᾱ_t.

    target(x0, eps, t, alphas_cumprod): what it is trained to give.
    to_eps(output, x, t, alphas_cumprod): ε from what it gave.
    """

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    to_eps: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


# The only kind so far. Another is a line here, and a config key that names it.
EPS = Prediction(target=lambda x0, eps, *_: eps, to_eps=lambda output, *_: output)


def noise_estimation_loss(
    model: Model, x0: Tensor, t: Tensor, eps: Tensor, alphas_cumprod: Tensor, prediction: Prediction = EPS
) -> Tensor:
    """The squared error of each image's prediction, summed over c, h, w (2010.02502, equation 5, γ = 1). (b,)

    model: the network itself. x0 and eps (b, c, h, w), t (b,) int64, alphas_cumprod (T+1,): on one device.
    """
    a = alphas_cumprod[t + 1].view(-1, 1, 1, 1)
    x = a.sqrt() * x0 + (1 - a).sqrt() * eps
    return (prediction.target(x0, eps, t, alphas_cumprod) - model(x, t)).square().sum(dim=(1, 2, 3))


def antithetic_timesteps(n: int, T: int, generator: torch.Generator) -> Tensor:
    """n random t in pairs (t, T-1-t): less variance than n independent ones. int64 (n,)."""
    t = torch.randint(T, (n // 2 + 1,), generator=generator, device=generator.device)
    return torch.cat([t, T - 1 - t])[:n]


def loss_by_quarter(losses: Tensor, t: Tensor, T: int) -> Tensor:
    """For each quarter of 0 … T-1 the sum of its losses and their number. (b,), (b,) -> (2, 4) float32"""
    in_quarter = (t * QUARTERS // T)[:, None] == torch.arange(QUARTERS, device=t.device)  # b 4
    return torch.stack([losses.float()[:, None].where(in_quarter, 0).sum(0), in_quarter.float().sum(0)])
