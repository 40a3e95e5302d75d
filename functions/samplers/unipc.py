"""UniPC (arXiv 2302.04867): a multistep predictor of x0 in λ, and a corrector that costs no evaluation."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from functions.samplers.steps import CLEAN, Level, Model, RandnLike, Step, evaluate, levels, usable_order

Known = Sequence[tuple[float, Tensor]]  # λ and the x0 predicted there, the newest first


@torch.no_grad()
def unipc(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    order: int,
    lower_order_final: bool,
    end: float = CLEAN,
    randn_like: RandnLike,
    bh2: bool = False,
) -> Iterator[Step]:
    """UniPC-p. bh2: of the two weights B(h) of section 3.1, e^h - 1 instead of h."""
    grid, known = levels(timesteps, alphas_cumprod, end), deque[tuple[float, Tensor]](maxlen=order)
    start, p = x, 0  # of the step before: its x, and its order
    for i, (here, there) in enumerate(pairwise(grid)):
        _, x0 = evaluate(model, x, here)
        if i:
            # Correct the step that led here, by what the network says at its end.
            x = _update(start, known, grid[i - 1], here, p, bh2, corrector=x0)
        known.appendleft((here.lam, x0))
        p = usable_order(order, len(known), len(grid) - 1 - i, there, lower_order_final)
        start, x = x, _update(x, known, here, there, p, bh2)
        yield Step(here.t, x, x0)


def _update(
    x: Tensor, known: Known, here: Level, there: Level, p: int, bh2: bool, corrector: Tensor | None = None
) -> Tensor:
    """From `here` by p predictions of x0, the newest at `here`, and the one at `there` where it corrects."""
    lam, x0 = known[0]
    h = there.lam - here.lam
    x = (there.sigma / here.sigma) * x - there.alpha * math.expm1(-h) * x0
    r = [(known[k][0] - lam) / h for k in range(1, p)]
    D = [(known[k][1] - x0) / r[k - 1] for k in range(1, p)]
    if corrector is not None:
        r, D = [*r, 1.0], [*D, corrector - x0]
    if not r:
        return x
    B = math.expm1(-h) if bh2 else -h
    for weight, difference in zip(_weights(r, -h, B), D, strict=True):
        x = x - there.alpha * B * weight * difference
    return x


def _weights(r: Sequence[float], h: float, B: float) -> list[float]:
    """ρ of R ρ = b (equation 10): exact for polynomials. One alone is ½, as its authors take it."""
    if len(r) == 1:
        return [0.5]
    b, g = [], math.expm1(h) / h - 1
    for j in range(1, len(r) + 1):
        b.append(g * math.factorial(j) / B)
        g = g / h - 1 / math.factorial(j + 1)
    return np.linalg.solve(np.vander(r, increasing=True).T, b).tolist()


def unipc_bh2(*arguments: Any, **how: Any) -> Iterator[Step]:
    """UniPC with B(h) = e^h - 1; the arguments are those of `unipc`."""
    return unipc(*arguments, **how, bh2=True)


SAMPLERS = {"unipc": unipc, "unipc_bh2": unipc_bh2}
