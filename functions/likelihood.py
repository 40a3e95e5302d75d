"""DDPM's bound on the likelihood of 8-bit images, in bits per dimension (arXiv 2006.11239, equation 5). Float64 throughout.

t counts from 0, so term 0 is the paper's L_0 and term t ≥ 1 its L_t: the bits that x_{t-1} costs one who has x_t.
The data's range is [low, 1]: low is -1 for rescaled data, else 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs.refusal import Refusal
from functions.samplers import Model, RandnLike


@dataclass(frozen=True)
class Chain:
    """The Gaussians of the forward process and of the model at t = 0..T-1, float64 (T,)."""

    alphas_cumprod: np.ndarray  # ᾱ_t
    x0_weight: np.ndarray  # of x0 in the mean of q(x_{t-1} | x_t, x0); equation 7
    posterior_variance: (
        np.ndarray
    )  # β̃_t of q(x_{t-1} | x_t, x0), the first replaced by the second; equation 7
    model_variance: np.ndarray  # of p(x_{t-1} | x_t): β_t (fixedlarge) or β̃_t (fixedsmall); section 3.2

    @property
    def T(self) -> int:
        return len(self.alphas_cumprod)


class Term(NamedTuple):
    """What timestep t contributes, a number for each image: float64 (b,)."""

    t: int
    bits: Tensor  # bits/dim
    eps_mse: Tensor  # mean of (ε - ε_θ)²
    x0_mse: Tensor  # mean squared error of the predicted x0, in squared 8-bit levels


@dataclass(frozen=True)
class Bound:
    """The terms of n images, float64. Means over images are (T,), by timestep."""

    image_terms: np.ndarray  # (n, 3): L_T, Σ L_t over t ≥ 1, and L_0, in bits/dim
    bits: np.ndarray  # L_t in bits/dim
    eps_mse: np.ndarray
    x0_mse: np.ndarray  # in squared 8-bit levels

    @property
    def rate(self) -> np.ndarray:
        """The bits/dim spent by who has x_t, sent progressively (section 4.3): L_T and the terms above t."""
        above = np.append(self.bits[1:], 0)[::-1].cumsum()[::-1]
        return self.image_terms[:, 0].mean() + above

    @property
    def rmse(self) -> np.ndarray:
        """The root mean squared error of the x0 predicted from x_t, in 8-bit levels."""
        return np.sqrt(self.x0_mse)


def chain(betas: np.ndarray, var_type: str) -> Chain:
    """The chain of β_t, float64 (T,); a last timestep with ᾱ = 0 (jsd has one) is no part of it, for it predicts no x0.

    Raises Refusal for fewer than two timesteps: the first variance is the second's.
    """
    a = np.cumprod(1 - betas)
    a = a[a > 0]
    if len(a) < 2:
        raise Refusal(f"bits per dimension need at least 2 timesteps with ᾱ > 0; this schedule has {len(a)}")
    betas, a_prev = betas[: len(a)], np.append(1.0, a[:-1])
    posterior = betas * (1 - a_prev) / (1 - a)
    posterior[0] = posterior[1]
    model = posterior if var_type == "fixedsmall" else np.append(posterior[1], betas[1:])
    return Chain(a, np.sqrt(a_prev) * betas / (1 - a), posterior, model)


def prior_bits(levels: Tensor, chain: Chain, low: float) -> Tensor:
    """L_T, the KL divergence of q(x_T | x0) from N(0, I), in bits/dim. levels: 0..255 (b, c, h, w) -> float64 (b,)."""
    a = chain.alphas_cumprod[-1]
    x0 = _from_levels(levels.double(), low)
    return _bits(0.5 * (a * x0.square() - a - math.log1p(-a)))


@torch.no_grad()
def bound_terms(
    model: Model, levels: Tensor, chain: Chain, low: float, device: torch.device, randn_like: RandnLike
) -> Iterator[Term]:
    """The terms t = 0..T-1 of the images `levels`, 0..255 (b, c, h, w), with x_t from one draw of noise at each t.

    The model runs on `device` in float32, everything else where `levels` lie. x0 is clipped to the data's range.
    """
    levels = levels.double()
    x0 = _from_levels(levels, low)
    for t in range(chain.T):
        a = chain.alphas_cumprod[t]
        eps = randn_like(x0)
        x = math.sqrt(a) * x0 + math.sqrt(1 - a) * eps
        eps_model = model(x.float().to(device), torch.full((len(x),), t, device=device)).to(x)
        x0_model = ((x - math.sqrt(1 - a) * eps_model) / math.sqrt(a)).clamp(low, 1)
        difference = x0_model - x0
        nats = (
            _step_kl(difference, chain, t)
            if t
            else discretized_nll(levels, x0_model, chain.model_variance[0], low)
        )
        x0_mse = (difference * 255 / (1 - low)).square()
        yield Term(t, _bits(nats), _mean((eps - eps_model).square()), _mean(x0_mse))


def discretized_nll(levels: Tensor, mean: Tensor, variance: float, low: float) -> Tensor:
    """-log of what N(mean, variance) gives to each level's bin, the outermost bins unbounded, in nats (equation 13).

    levels: float64 0..255; mean: in [low, 1]. Exact far out too, where DDPM's code stops at 10⁻¹².
    """
    half = (1 - low) / 255 / 2
    centre = _from_levels(levels, low) - mean
    lower = torch.where(levels == 0, -math.inf, (centre - half) / math.sqrt(variance))
    upper = torch.where(levels == 255, math.inf, (centre + half) / math.sqrt(variance))
    # The mirrored bin has the same mass, and left of the mean the difference of two tails keeps its digits.
    right = lower + upper > 0
    lower, upper = torch.where(right, -upper, lower), torch.where(right, -lower, upper)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    return -(log_upper + torch.log1p(-(log_lower - log_upper).exp()))


def _step_kl(x0_difference: Tensor, chain: Chain, t: int) -> Tensor:
    """KL of q(x_{t-1} | x_t, x0) from p(x_{t-1} | x_t), in nats: the two means differ by what their x0 do."""
    ratio = chain.posterior_variance[t] / chain.model_variance[t]
    mean_difference = chain.x0_weight[t] * x0_difference
    return 0.5 * (ratio - 1 - math.log(ratio) + mean_difference.square() / chain.model_variance[t])


def _from_levels(levels: Tensor, low: float) -> Tensor:
    return low + (1 - low) * levels / 255


def _bits(nats: Tensor) -> Tensor:
    return _mean(nats) / math.log(2)


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=(1, 2, 3))
