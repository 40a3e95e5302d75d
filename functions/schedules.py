"""β, ᾱ and the choice of timesteps."""

import numpy as np
import torch
from torch import Tensor

from configs import DiffusionConfig


def betas(config: DiffusionConfig) -> np.ndarray:
    """β_t for t = 0..T-1, float64 (T,)."""
    start, end, T = config.beta_start, config.beta_end, config.num_diffusion_timesteps
    match config.beta_schedule:
        case "linear":
            return np.linspace(start, end, T)
        case "quad":
            return np.linspace(start**0.5, end**0.5, T) ** 2
        case "const":
            return np.full(T, end)
        case "jsd":
            return 1.0 / np.linspace(T, 1, T)
        case "sigmoid":
            return 1 / (1 + np.exp(-np.linspace(-6, 6, T))) * (end - start) + start


def alphas_cumprod(betas: np.ndarray) -> Tensor:
    """ᾱ with a clean image's 1 in front, float32 (T+1,) on the CPU: `alphas_cumprod[t + 1]` is ᾱ_t.

    β is rounded to float32 before the product, as upstream does: published weights and numbers rest on it.
    """
    padded = torch.cat([torch.zeros(1), torch.from_numpy(betas).float()])
    return (1 - padded).cumprod(dim=0)


def select_timesteps(skip_type: str, S: int, T: int) -> list[int]:
    """τ, ascending, upstream's to the bit, repeats included (DDIM, appendix D.2).

    `uniform` has more than S entries where S does not divide T; `quad` ends at 0.8·T and may repeat small values.
    """
    assert 1 <= S <= T
    if skip_type == "quad":
        return [int(t) for t in np.linspace(0, np.sqrt(T * 0.8), S) ** 2]
    return list(range(0, T, T // S))
