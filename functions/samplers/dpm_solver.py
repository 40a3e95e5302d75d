"""DPM-Solver (arXiv 2206.00927) and DPM-Solver++ (2211.01095): exact in λ but for a Taylor polynomial.

DPM-Solver takes the polynomial of ε, DPM-Solver++ that of x0. Order 1 is DDIM with η = 0.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functions.samplers.steps import CLEAN, Level, Model, RandnLike, Step, evaluate, levels, usable_order
from functions.schedules import singlestep_orders


class Integrals(NamedTuple):
    """Of a step: what a polynomial's terms of degree 0, 1 and 2 in λ/h add to x, with the sign."""

    phi1: float
    phi2: float
    phi3: float


def integrals(here: Level, there: Level, of_x0: bool) -> Integrals:
    """φ1, φ2, φ3 of the step, times -α of its end for x0 and -σ for ε (2211.01095, appendix A)."""
    h = here.lam - there.lam if of_x0 else there.lam - here.lam
    scale = -there.alpha if of_x0 else -there.sigma
    phi1 = math.expm1(h)
    phi2 = phi1 / h - 1
    return Integrals(scale * phi1, scale * phi2, scale * (phi2 / h - 0.5))


@torch.no_grad()
def multistep(
    model: Model, x: Tensor, levels: Sequence[Level], of_x0: bool, taylor: bool, order: int, lower: bool
) -> Iterator[Step]:
    """2M and 3M: one evaluation a step, the differences are to the evaluations before."""
    known: deque[tuple[float, Tensor]] = deque(maxlen=order)  # λ and the prediction there, the newest first
    for i, (here, there) in enumerate(pairwise(levels)):
        eps, x0 = evaluate(model, x, here)
        known.appendleft((here.lam, x0 if of_x0 else eps))
        x = there.alpha * x0 + there.sigma * eps
        p = usable_order(order, len(known), len(levels) - 1 - i, there, lower)
        if p >= 2:
            phi, h = integrals(here, there, of_x0), there.lam - here.lam
            (lam0, m0), (lam1, m1) = known[0], known[1]
            r0 = (lam0 - lam1) / h
            D = (m0 - m1) / r0
        if p == 2:
            x = x + (phi.phi2 if taylor else phi.phi1 / 2) * D
        if p == 3:
            # As published, with half of the second derivative: of second order, with a small error.
            lam2, m2 = known[2]
            r1 = (lam1 - lam2) / h
            D2 = (D - (m1 - m2) / r1) / (r0 + r1)
            x = x + phi.phi2 * (D + r0 * D2) + phi.phi3 * D2
        yield Step(here.t, x, x0)


@torch.no_grad()
def singlestep(
    model: Model, x: Tensor, levels: Sequence[Level], of_x0: bool, taylor: bool, order: int
) -> Iterator[Step]:
    """2S and 3S: steps of two or three evaluations, inner points in τ too (2206.00927, algorithms 4, 5)."""
    first = 0
    for p in singlestep_orders(len(levels) - 1, order, ends_clean=not levels[-1].sigma):
        # Evaluate at the begin of the step; `ddim` goes from there.
        here, *inner, there = levels[first : first + p + 1]
        first += p
        eps, x0 = evaluate(model, x, here)
        m, ddim = x0 if of_x0 else eps, partial(_ddim, x0, eps)
        if p == 1:
            x = ddim(there)
            yield Step(here.t, x, x0)
            continue

        # Evaluate at the first inner point, for a first derivative.
        h = there.lam - here.lam
        r = [(at.lam - here.lam) / h for at in inner]
        phi, middle = integrals(here, there, of_x0), ddim(inner[0])
        yield Step(here.t, middle, x0)
        eps, x0 = evaluate(model, middle, inner[0])
        D1 = ((x0 if of_x0 else eps) - m) / r[0]
        if p == 2:
            x = ddim(there) + (phi.phi2 if taylor else phi.phi1 / 2) * D1
            yield Step(inner[0].t, x, x0)
            continue

        # Evaluate at the second.
        middle = ddim(inner[1]) + r[1] * integrals(here, inner[1], of_x0).phi2 * D1
        yield Step(inner[0].t, middle, x0)
        eps, x0 = evaluate(model, middle, inner[1])
        D2 = ((x0 if of_x0 else eps) - m) / r[1]
        x = ddim(there) + phi.phi2 * D2
        if taylor:
            curvature = (D2 - D1) / (r[1] - r[0])
            x = x + (2 * phi.phi3 - r[1] * phi.phi2) * curvature
        yield Step(inner[1].t, x, x0)


def _ddim(x0: Tensor, eps: Tensor, there: Level) -> Tensor:
    return there.alpha * x0 + there.sigma * eps


def dpmsolver(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    order: int,
    method: str,
    solver_type: str,
    lower_order_final: bool,
    end: float = CLEAN,
    randn_like: RandnLike,
    of_x0: bool = False,
) -> Iterator[Step]:
    """DPM-Solver. method: multistep or singlestep. solver_type: one of two formulas, dpmsolver or taylor."""
    walk = model, x, levels(timesteps, alphas_cumprod, end), of_x0, solver_type == "taylor", order
    return singlestep(*walk) if method == "singlestep" else multistep(*walk, lower_order_final)


def dpmsolver_plus_plus(*arguments: Any, **how: Any) -> Iterator[Step]:
    """DPM-Solver++; the arguments are those of DPM-Solver."""
    return dpmsolver(*arguments, **how, of_x0=True)


SAMPLERS = {"dpmsolver++": dpmsolver_plus_plus, "dpmsolver": dpmsolver}
