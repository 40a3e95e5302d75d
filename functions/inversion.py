"""From an image to its x_T: DDIM's ODE in the other direction (arXiv 2010.02502, section 5.4)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from functions.samplers.steps import CLEAN, Model, Step, label
from functions.schedules import alpha_bar


@torch.no_grad()
def encode(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    end: float = CLEAN,
    inversion: Literal["to", "from"] = "to",
) -> Iterator[Step]:
    """DDIM at η = 0, upwards: from images x (b, c, h, w) in the model's range to x_T, the last step's x.

    timesteps: τ, ascending. end: where decoding ends, so where this begins. inversion: the level that a step
    tells the network, "to" the one it goes to, as decoding does there, or "from" the one it leaves. The paper
    does not say which it took.
    """
    for t, t_next in pairwise([end, *timesteps]):
        a, a_next = alpha_bar(alphas_cumprod, t), alpha_bar(alphas_cumprod, t_next)
        at = t_next if inversion == "to" else max(t, 0)  # a clean image has no label: the lowest
        eps = model(x, label(x, at))
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = a_next.sqrt() * x0 + (1 - a_next).sqrt() * eps
        yield Step(at, x, x0)
