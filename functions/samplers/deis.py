"""DEIS (arXiv 2204.13902): exact but for a polynomial of ε in t."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from functions.samplers.steps import CLEAN, Model, RandnLike, Step, evaluate, levels, usable_order
from functions.schedules import alpha_bar

PIECES = 10  # of a timestep, for the quadrature; its error is below 1e-6


@torch.no_grad()
def deis(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    order: int,
    lower_order_final: bool,
    end: float = CLEAN,
    randn_like: RandnLike,
) -> Iterator[Step]:
    """tAB-DEIS by as many values of ε as `order` says (section 3.2); order 4 is the paper's tAB3."""
    grid, known = levels(timesteps, alphas_cumprod, end), deque[tuple[float, Tensor]](maxlen=order)
    for i, (here, there) in enumerate(pairwise(grid)):
        eps, x0 = evaluate(model, x, here)
        known.appendleft((here.t, eps))
        p = usable_order(order, len(known), len(grid) - 1 - i, there, lower_order_final)
        if p == 1:
            x = there.alpha * x0 + there.sigma * eps
        else:
            labels, values = zip(*list(known)[:p], strict=True)
            x = x / here.alpha
            for weight, value in zip(_weights(labels, there.t, alphas_cumprod), values, strict=True):
                x = x + weight * value
            x = there.alpha * x
        yield Step(here.t, x, x0)


def _weights(labels: Sequence[float], t_next: float, alphas_cumprod: Tensor) -> list[float]:
    """∫ L_j(t) dρ from labels[0] to t_next, where L_j is 1 at labels[j] and 0 at the others."""
    t = np.linspace(labels[0], t_next, 1 + PIECES * math.ceil(labels[0] - t_next))
    a = alpha_bar(alphas_cumprod.double(), torch.from_numpy(t)).numpy()
    rho, weights = np.sqrt((1 - a) / a), []
    for own in labels:
        others = [label for label in labels if label != own]
        L = np.prod([(t - other) / (own - other) for other in others], axis=0)
        weights.append(float(np.trapezoid(L, rho)))
    return weights


SAMPLERS = {"deis": deis}
