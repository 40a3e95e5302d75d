"""x0 kept in the data's range at every evaluation: around the network, so that it holds for every sampler."""

from collections.abc import Callable

import torch
from torch import Tensor

from functions.samplers.steps import Model
from functions.schedules import alpha_bar

SHARE = 0.995  # of an image's values that dynamic thresholding leaves as they are


def clip(x0: Tensor) -> Tensor:
    return x0.clamp(-1, 1)


def dynamic(x0: Tensor) -> Tensor:
    """Dynamic thresholding (arXiv 2205.11487, section 2.3): by s, the 0.995 quantile of |x0|, at least 1."""
    s = x0.abs().flatten(1).quantile(SHARE, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    return x0.clamp(-s, s) / s


# By the names in configs/choices.py, for images in [-1, 1].
CLIPS: dict[str, Callable[[Tensor], Tensor] | None] = {"off": None, "on": clip, "dynamic": dynamic}


def clipped(model: Model, alphas_cumprod: Tensor, name: str, low: float) -> Model:
    """`model` with the ε that belongs to its clipped x0. alphas_cumprod: on its device. Data: [low, 1]."""
    threshold = CLIPS[name]
    if threshold is None:
        return model
    centre, half = (1 + low) / 2, (1 - low) / 2

    @torch.no_grad()
    def eps(x: Tensor, t: Tensor) -> Tensor:
        a = alpha_bar(alphas_cumprod, t).to(x.dtype).view(-1, 1, 1, 1)
        x0 = (x - (1 - a).sqrt() * model(x, t)) / a.sqrt()
        x0 = centre + half * threshold((x0 - centre) / half)
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    return eps
