"""The samplers. Each walks τ backwards and yields a `Step` after every evaluation, keeping nothing.

x: (b, c, h, w), x_T at first, the image in the model's range at last. model(x, t) gives ε for int t (b,).
timesteps: τ, ascending. alphas_cumprod: ᾱ after a leading 1, on the CPU: the same roots for every device.
Every sampler takes `randn_like`, and `eta` if its record has takes_eta. randn_like(x) is standard normal
noise; a sampler that draws any calls it once a step, and its record says so.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]
RandnLike = Callable[[Tensor], Tensor]


class Step(NamedTuple):
    """Timestep t, x after its update, and the x0 it predicted. The tensors are valid until the next step."""

    t: int
    x: Tensor
    x0: Tensor


def last(steps: Iterator[Step]) -> Step:
    """Run a sampler to its end."""
    return deque(steps, maxlen=1).pop()


@torch.no_grad()
def generalized(
    model: Model,
    x: Tensor,
    timesteps: Sequence[int],
    alphas_cumprod: Tensor,
    *,
    eta: float,
    randn_like: RandnLike,
) -> Iterator[Step]:
    """DDIM (arXiv 2010.02502, equations 12 and 16): eta 0 is deterministic, 1 is DDPM. x0 is not clipped."""
    for t, t_next in pairwise([*reversed(timesteps), -1]):
        a, a_next = alphas_cumprod[t + 1], alphas_cumprod[t_next + 1]
        eps = model(x, x.new_full((len(x),), t, dtype=torch.long))
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        sigma = eta * ((1 - a / a_next) * (1 - a_next) / (1 - a)).sqrt()
        # At eta 1 rounding can bring the difference a hair below zero.
        x = a_next.sqrt() * x0 + (1 - a_next - sigma**2).clamp(min=0).sqrt() * eps
        if eta > 0:
            x = x + sigma * randn_like(x)
        yield Step(t, x, x0)


@torch.no_grad()
def ddpm_noisy(
    model: Model, x: Tensor, timesteps: Sequence[int], alphas_cumprod: Tensor, *, randn_like: RandnLike
) -> Iterator[Step]:
    """DDPM with the larger variance σ̂ (2010.02502, section 5.1; 2006.11239, algorithm 2). x0 is clipped."""
    for t, t_next in pairwise([*reversed(timesteps), -1]):
        a, a_next = alphas_cumprod[t + 1], alphas_cumprod[t_next + 1]
        beta = 1 - a / a_next
        eps = model(x, x.new_full((len(x),), t, dtype=torch.long))
        x0 = ((1 / a).sqrt() * x - (1 / a - 1).sqrt() * eps).clamp(-1, 1)
        mean = (a_next.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - a_next) * x) / (1 - a)
        noise = randn_like(x)
        x = mean + beta.sqrt() * noise if t > 0 else mean
        yield Step(t, x, x0)


# The names of configs/choices.py.
SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {"generalized": generalized, "ddpm_noisy": ddpm_noisy}
