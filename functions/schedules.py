"""β, ᾱ and the spacing of timesteps: a function for each name."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from configs import DiffusionConfig

# β_t for t = 0..T-1 from (start, end, T), by the names of diffusion.beta_schedule in configs/__init__.py.
# A schedule may ignore start and end.
SCHEDULES: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "linear": np.linspace,
    "quad": lambda start, end, T: np.linspace(start**0.5, end**0.5, T) ** 2,
    "const": lambda start, end, T: np.full(T, end),
    "jsd": lambda start, end, T: 1.0 / np.linspace(T, 1, T),
    "sigmoid": lambda start, end, T: 1 / (1 + np.exp(-np.linspace(-6, 6, T))) * (end - start) + start,
}

# τ, ascending, from (S, T), upstream's to the bit (DDIM, appendix D.2), by the names in configs/choices.py.
SPACINGS: dict[str, Callable[[int, int], list[int]]] = {
    "uniform": lambda S, T: list(range(0, T, T // S)),  # more than S entries where S does not divide T
    "quad": lambda S, T: [int(t) for t in np.linspace(0, np.sqrt(T * 0.8), S) ** 2],  # small ones may repeat
}


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


def select_timesteps(skip_type: str, S: int, T: int) -> list[int]:
    """τ for S steps of T timesteps, 1 ≤ S ≤ T: ascending, repeats included."""
    assert 1 <= S <= T
    return SPACINGS[skip_type](S, T)
