"""β, ᾱ and the spacing of timesteps: a function for each name.

A timestep t is the network's label, 0 … T-1. One that lies between two is a float; log ᾱ is linear between.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from configs import DiffusionConfig
from configs.timesteps import read_timesteps

# β_t for t = 0..T-1 from (start, end, T), by the names of diffusion.beta_schedule in configs/__init__.py.
# A schedule may ignore start and end.
SCHEDULES: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "linear": np.linspace,
    "quad": lambda start, end, T: np.linspace(start**0.5, end**0.5, T) ** 2,
    "const": lambda start, end, T: np.full(T, end),
    "jsd": lambda start, end, T: 1.0 / np.linspace(T, 1, T),
    "sigmoid": lambda start, end, T: 1 / (1 + np.exp(-np.linspace(-6, 6, T))) * (end - start) + start,
    "cosine": lambda start, end, T: _cosine(T),
    "warmup10": lambda start, end, T: _warmup(start, end, T, 0.1),
    "warmup50": lambda start, end, T: _warmup(start, end, T, 0.5),
}


# τ, ascending, from (S, T), by the names in configs/choices.py; the last step goes to a clean image.
# The first two are upstream's to the bit (DDIM, appendix D.2).
SPACINGS: dict[str, Callable[[int, int], list[int]]] = {
    "uniform": lambda S, T: list(range(0, T, T // S)),  # more than S entries where S does not divide T
    "quad": lambda S, T: [int(t) for t in np.linspace(0, np.sqrt(T * 0.8), S) ** 2],  # small ones may repeat
    "trailing": lambda S, T: [round(T * (i + 1) / S) - 1 for i in range(S)],
    "linspace": lambda S, T: np.linspace(T - 1, 0, S).round().astype(int)[::-1].tolist(),
}


def _equal_in_lambda(share: np.ndarray, alphas_cumprod: np.ndarray) -> np.ndarray:
    log_a = np.log(alphas_cumprod)
    lam = (log_a - np.log1p(-alphas_cumprod)) / 2
    lam = lam[-1] + share * (lam[0] - lam[-1])
    return np.interp(np.logaddexp(0, -2 * lam), -log_a, np.arange(len(log_a)))


# Timesteps at given shares of the way from T-1 (share 0) to 0 (share 1), from ᾱ_0 … ᾱ_{T-1}: float64 arrays.
# DPM-Solver's (arXiv 2206.00927): the last step goes to t = 0, where a little noise is left, and S steps are
# equal in t, in √(t+1) or in λ = log √(ᾱ/(1-ᾱ)).
CURVES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "time_uniform": lambda share, a: (1 - share) * (len(a) - 1),
    "time_quadratic": lambda share, a: len(a) * (1 + share * (len(a) ** -0.5 - 1)) ** 2 - 1,
    "logSNR": _equal_in_lambda,
}


def _cosine(T: int) -> np.ndarray:
    """ᾱ follows cos², and no β is above 0.999 (arXiv 2102.09672, equation 17)."""
    a = np.cos((np.linspace(0, 1, T + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - a[1:] / a[:-1], 0.999)


def _warmup(start: float, end: float, T: int, share: float) -> np.ndarray:
    """From start to end over the first `share` of T, then constant, as in DDPM's code."""
    return np.append(np.linspace(start, end, int(T * share)), np.full(T - int(T * share), end))


def betas(config: DiffusionConfig) -> np.ndarray:
    """β_t for t = 0..T-1, float64 (T,)."""
    schedule = SCHEDULES[config.beta_schedule]
    return schedule(config.beta_start, config.beta_end, config.num_diffusion_timesteps)


def alphas_cumprod(betas: np.ndarray) -> Tensor:
    """ᾱ with a clean image's 1 in front, float32 (T+1,) on the CPU: `alphas_cumprod[t + 1]` is ᾱ_t.

    β is rounded to float32 before the product, as upstream does: published weights and numbers rest on it.
    """
    padded = torch.cat([torch.zeros(1), torch.from_numpy(betas).float()])
    return (1 - padded).cumprod(dim=0)


def alpha_bar(alphas_cumprod: Tensor, t: float | Tensor) -> Tensor:
    """ᾱ_t in the shape of t, -1 (clean) … T-1; log ᾱ is linear between. alphas_cumprod: (T+1,), as above."""
    kind = torch.float64 if isinstance(t, float) else None
    t = torch.as_tensor(t, dtype=kind, device=alphas_cumprod.device)
    below = t.floor().long()
    a = alphas_cumprod[below + 1]
    if not t.is_floating_point():
        return a
    share = (t - below).to(a.dtype)
    above = alphas_cumprod[(below + 2).clamp(max=len(alphas_cumprod) - 1)]
    return torch.where(share > 0, (1 - share) * a.log() + share * above.log(), a.log()).exp()


def select_timesteps(skip_type: str, S: int, T: int) -> list[int]:
    """τ for S steps of T timesteps, 1 ≤ S ≤ T: ascending, repeats included."""
    assert 1 <= S <= T
    return SPACINGS[skip_type](S, T)


def grid(
    skip_type: str, S: int, alphas_cumprod: Tensor, *, denoise: bool = False, singlestep: int = 0
) -> tuple[list[float], int]:
    """τ for S evaluations, ascending, and where the last step ends: at -1, a clean image, or at 0.

    skip_type: a spacing's name, or a file of timesteps. denoise: evaluate at 0, end clean. singlestep:
    the order of a singlestep solver; its steps, of several evaluations, are equally long in λ with logSNR.
    """
    if skip_type in SPACINGS:
        return [*select_timesteps(skip_type, S, len(alphas_cumprod) - 1)], -1
    if skip_type not in CURVES:
        return [*read_timesteps(skip_type)], -1
    steps, T = S - denoise, len(alphas_cumprod) - 1
    share = np.linspace(0, 1, steps + 1)
    if singlestep and skip_type == "logSNR" and steps:
        orders = singlestep_orders(steps, singlestep)
        parts = [(k + np.arange(p) / p) / len(orders) for k, p in enumerate(orders)]
        share = np.append(np.concatenate(parts), 1)
    # Both ends are exact; a schedule that ends at ᾱ = 0 has no λ there.
    with np.errstate(all="ignore"):
        inner = CURVES[skip_type](share, alphas_cumprod[1:].double().numpy())[1:-1]
    timesteps = [T - 1, *np.nan_to_num(inner).tolist(), 0][: steps + 1]
    return (timesteps[::-1], -1) if denoise else (timesteps[-2::-1], 0)


def singlestep_orders(S: int, order: int, *, ends_clean: bool = False) -> list[int]:
    """The orders of singlestep updates that spend S evaluations: the highest first, lower ones to fill up.

    With `ends_clean` the last evaluation has a step of its own (arXiv 2206.00927, section 3.4).
    """
    if ends_clean:
        return [*singlestep_orders(S - 1, order), 1] if S > 1 else [1]
    if order == 3:
        full, rest = divmod(S, 3)
        return [3] * full + [rest] if rest else [3] * (full - 1) + [2, 1]
    return [order] * (S // order) + [1] * (S % order)
