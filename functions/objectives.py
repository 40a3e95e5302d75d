"""What the network is trained to predict, and the loss. Samplers and the bound see ε alone."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from configs import Config
from functions.samplers import Model
from functions.schedules import alpha_bar

QUARTERS = 4


class Prediction(NamedTuple):
    """What a network gives for x_t = √a·x0 + √(1-a)·ε, where a is ᾱ_t as (b, 1, 1, 1) and may be 0.

    target(x0, eps, a): what it is trained to give. to_eps(output, x, a): ε from what it gave.
    min_snr(snr, gamma): its loss's weight (arXiv 2303.09556, section 3.4), snr = a / (1 - a).
    """

    target: Callable[[Tensor, Tensor, Tensor], Tensor]
    to_eps: Callable[[Tensor, Tensor, Tensor], Tensor]
    min_snr: Callable[[Tensor, float], Tensor]


# By the names of model.prediction in configs/__init__.py. v: arXiv 2202.00512, appendix D.
PREDICTIONS: Mapping[str, Prediction] = {
    "eps": Prediction(
        target=lambda x0, eps, a: eps,
        to_eps=lambda output, x, a: output,
        min_snr=lambda snr, gamma: (gamma / snr).clamp(max=1),
    ),
    "x0": Prediction(
        target=lambda x0, eps, a: x0,
        to_eps=lambda output, x, a: (x - a.sqrt() * output) / (1 - a).sqrt(),
        min_snr=lambda snr, gamma: snr.clamp(max=gamma),
    ),
    "v": Prediction(
        target=lambda x0, eps, a: a.sqrt() * eps - (1 - a).sqrt() * x0,
        to_eps=lambda output, x, a: a.sqrt() * output + (1 - a).sqrt() * x,
        min_snr=lambda snr, gamma: snr.clamp(max=gamma) / (snr + 1),
    ),
}


class Objective(NamedTuple):
    """The loss that a config describes. Upstream's is the default."""

    prediction: Prediction = PREDICTIONS["eps"]
    mean: bool = False  # over c, h, w, as DDPM's code has it; otherwise the sum
    min_snr_gamma: float | None = None


def objective_of(config: Config) -> Objective:
    training = config.training
    return Objective(PREDICTIONS[config.model.prediction], training.loss == "mean", training.min_snr_gamma)


def noise_estimation_loss(
    model: Model,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    alphas_cumprod: Tensor,
    objective: Objective = Objective(),  # noqa: B008
) -> Tensor:
    """The squared error of each image's prediction, summed over c, h, w (2010.02502, equation 5, γ = 1). (b,)

    model: the network itself. x0 and eps (b, c, h, w), t (b,) int64, alphas_cumprod (T+1,): on one device.
    """
    a = alphas_cumprod[t + 1].view(-1, 1, 1, 1)
    x = a.sqrt() * x0 + (1 - a).sqrt() * eps
    errors = (objective.prediction.target(x0, eps, a) - model(x, t)).square()
    losses = errors.mean(dim=(1, 2, 3)) if objective.mean else errors.sum(dim=(1, 2, 3))
    if objective.min_snr_gamma is None:
        return losses
    return losses * objective.prediction.min_snr((a / (1 - a)).flatten(), objective.min_snr_gamma)


def eps_of(prediction: Prediction, output: Tensor, x: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """ε from what the network gave for x (b, c, h, w) at t (b,), whole or between; ᾱ (T+1,) on the device."""
    return prediction.to_eps(output, x, alpha_bar(alphas_cumprod, t).to(x.dtype).view(-1, 1, 1, 1))


def independent_timesteps(n: int, T: int, generator: torch.Generator) -> Tensor:
    """n independent random t, as DDPM draws them. int64 (n,)."""
    return torch.randint(T, (n,), generator=generator, device=generator.device)


def antithetic_timesteps(n: int, T: int, generator: torch.Generator) -> Tensor:
    """n random t in pairs (t, T-1-t): less variance than n independent ones. int64 (n,)."""
    t = torch.randint(T, (n // 2 + 1,), generator=generator, device=generator.device)
    return torch.cat([t, T - 1 - t])[:n]


def loss_by_quarter(losses: Tensor, t: Tensor, T: int) -> Tensor:
    """For each quarter of 0 … T-1 the sum of its losses and their number. (b,), (b,) -> (2, 4) float32"""
    in_quarter = (t * QUARTERS // T)[:, None] == torch.arange(QUARTERS, device=t.device)  # b 4
    return torch.stack([losses.float()[:, None].where(in_quarter, 0).sum(0), in_quarter.float().sum(0)])
