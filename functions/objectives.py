"""The training objective."""

import torch
from torch import Tensor

from functions.samplers import Model

QUARTERS = 4


def antithetic_timesteps(n: int, T: int, generator: torch.Generator) -> Tensor:
    """n timesteps in pairs (t, T-1-t): the same coverage with less variance than n independent draws. int64 (n,)."""
    t = torch.randint(T, (n // 2 + 1,), generator=generator, device=generator.device)
    return torch.cat([t, T - 1 - t])[:n]


def noise_estimation_loss(model: Model, x0: Tensor, t: Tensor, eps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """‖ε - ε_θ(x_t, t)‖² of each image, summed over c, h, w (arXiv 2010.02502, equation 5 with γ = 1). (b,)

    x0 and eps: (b, c, h, w); t: (b,) int64; alphas_cumprod: (T+1,) on the same device.
    """
    a = alphas_cumprod[t + 1].view(-1, 1, 1, 1)
    x = a.sqrt() * x0 + (1 - a).sqrt() * eps
    return (eps - model(x, t)).square().sum(dim=(1, 2, 3))


def loss_by_quarter(losses: Tensor, t: Tensor, T: int) -> Tensor:
    """For each quarter of the timesteps 0 … T-1, the sum of its losses and how many they are. (b,), (b,) -> (2, 4) float32"""
    in_quarter = (t * QUARTERS // T)[:, None] == torch.arange(QUARTERS, device=t.device)  # b 4
    return torch.stack([losses.float()[:, None].where(in_quarter, 0).sum(0), in_quarter.float().sum(0)])
