"""DDPM's bound on the likelihood of 8-bit images in bits/dim (arXiv 2006.11239, equation 5), in float64.

t counts from 0, so term 0 is the paper's L_0 and term t ≥ 1 its L_t: the bits to send x_{t-1} to who has x_t.
The data's range is [low, 1]: low is -1 for rescaled data, else 0.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs.refusal import Refusal
from functions.samplers import Model, RandnLike


class Gaussians(NamedTuple):
    """The Gaussians of the forward process and of the model at t = 0..T-1, float64 (T,)."""

    alphas_cumprod: np.ndarray  # ᾱ_t
    x0_weight: np.ndarray  # of x0 in the mean of q(x_{t-1} | x_t, x0); equation 7
    posterior_variance: np.ndarray  # β̃_t of q(x_{t-1} | x_t, x0), the first replaced by the second
    model_variance: np.ndarray  # of p(x_{t-1} | x_t): β_t (fixedlarge) or β̃_t (fixedsmall); section 3.2


class Term(NamedTuple):
    """What a timestep contributes, a number for each image: float64 (b,)."""

    bits: Tensor  # bits/dim
    eps_mse: Tensor  # mean of (ε - ε_θ)²
    x0_mse: Tensor  # mean squared error of the predicted x0, in squared 8-bit levels


class Bound(NamedTuple):
    """The terms of n images, float64: by image, and means over images by timestep, (T,)."""

    image_terms: np.ndarray  # (n, 3): L_T, Σ L_t over t ≥ 1, and L_0, in bits/dim
    bits: np.ndarray  # L_t in bits/dim
    eps_mse: np.ndarray
    rate: np.ndarray  # the bits/dim sent so far to who has x_t (section 4.3): L_T and the terms above t
    rmse: np.ndarray  # the root mean squared error of the x0 predicted from x_t, in 8-bit levels


def gaussians(betas: np.ndarray, var_type: str) -> Gaussians:
    """Those of β_t (T,), but for a last t with ᾱ = 0, as jsd's. Raises Refusal if fewer than 2 are left."""
    a = np.cumprod(1 - betas)
    a = a[a > 0]
    if len(a) < 2:  # the first variance is the second's
        raise Refusal(f"bits per dimension need at least 2 timesteps with ᾱ > 0; this schedule has {len(a)}")
    betas, a_prev = betas[: len(a)], np.append(1.0, a[:-1])
    posterior = betas * (1 - a_prev) / (1 - a)
    posterior[0] = posterior[1]
    model = posterior if var_type == "fixedsmall" else np.append(posterior[1], betas[1:])
    return Gaussians(a, np.sqrt(a_prev) * betas / (1 - a), posterior, model)


def prior_bits(levels: Tensor, of: Gaussians, low: float) -> Tensor:
    """L_T, the KL of q(x_T | x0) from N(0, I), in bits/dim. levels: 0..255 (b, c, h, w) -> float64 (b,)."""
    a, x0 = of.alphas_cumprod[-1], _from_levels(levels.double(), low)
    return _mean(0.5 * (a * x0.square() - a - math.log1p(-a))) / math.log(2)


@torch.no_grad()
def bound_terms(
    model: Model, levels: Tensor, of: Gaussians, low: float, device: torch.device, randn_like: RandnLike
) -> Iterator[Term]:
    """The terms t = 0..T-1 of images, levels 0..255 (b, c, h, w); each x_t is one draw of noise.

    model gives ε, in float32 on `device`. The rest is where `levels` are. x0 is clipped to [low, 1].
    """
    levels = levels.double()
    x0 = _from_levels(levels, low)
    for t, a in enumerate(of.alphas_cumprod):
        # Diffuse the images to t, and predict x0 from there.
        eps = randn_like(x0)
        x = math.sqrt(a) * x0 + math.sqrt(1 - a) * eps
        eps_model = model(x.float().to(device), torch.full((len(x),), t, device=device)).to(x)
        x0_model = ((x - math.sqrt(1 - a) * eps_model) / math.sqrt(a)).clamp(low, 1)

        # What the error costs: of q from p, the KL by the difference of their means.
        error, variance = x0_model - x0, of.model_variance[t]
        if t == 0:
            nats = discretized_nll(levels, x0_model, variance, low)
        else:
            ratio = of.posterior_variance[t] / variance
            nats = 0.5 * (ratio - 1 - math.log(ratio) + (of.x0_weight[t] * error).square() / variance)
        x0_mse = _mean((error * 255 / (1 - low)).square())
        yield Term(_mean(nats) / math.log(2), _mean((eps - eps_model).square()), x0_mse)


def discretized_nll(levels: Tensor, mean: Tensor, variance: float, low: float) -> Tensor:
    """-log of the mass of N(mean, variance) in each level's bin, in nats (equation 13). End bins are open.

    levels: float64 0..255; mean: in [low, 1]. Exact in the tails too, where DDPM's code stops at 10⁻¹².
    """
    half, sd = (1 - low) / 255 / 2, math.sqrt(variance)
    centre = _from_levels(levels, low) - mean
    lower = torch.where(levels == 0, -math.inf, (centre - half) / sd)
    upper = torch.where(levels == 255, math.inf, (centre + half) / sd)
    # The mirrored bin has the same mass, and left of the mean the difference of two tails keeps its digits.
    right = lower + upper > 0
    lower, upper = torch.where(right, -upper, lower), torch.where(right, -lower, upper)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    return -(log_upper + torch.log1p(-(log_lower - log_upper).exp()))


def _from_levels(levels: Tensor, low: float) -> Tensor:
    return low + (1 - low) * levels / 255


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=(1, 2, 3))
