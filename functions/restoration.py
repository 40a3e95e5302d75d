"""Restoration by a network that was trained on whole images: DDNM (arXiv 2212.00490).

A degradation y = A x of images x (b, c, h, w) has a pseudo-inverse A⁺, with A A⁺ A = A. Of a predicted x0 the
part that y decides is replaced, x0 + A⁺(y - A x0), and the network finds the rest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from functions.samplers.steps import CLEAN, Model, RandnLike, Step, label
from functions.schedules import alpha_bar


@dataclass(frozen=True)
class Degradation:
    """A and A⁺, as functions of a batch."""

    apply: Callable[[Tensor], Tensor]
    pseudo_inverse: Callable[[Tensor], Tensor]

    def project(self, x0: Tensor, y: Tensor, share: float = 1) -> Tensor:
        """x0 with what y says of it; with `share` below 1 it goes that part of the way."""
        return x0 + share * self.pseudo_inverse(y - self.apply(x0))


def _inpainting(known: Tensor) -> Degradation:
    return Degradation(lambda x: known.to(x) * x, lambda y: y)


def _averages(factor: int) -> Degradation:
    """The mean of each square of pixels; A⁺ repeats it."""
    return Degradation(
        lambda x: avg_pool2d(x, factor), lambda y: interpolate(y, scale_factor=factor, mode="nearest")
    )


def _grey(channels: int) -> Degradation:
    """The mean of the colours."""
    return Degradation(lambda x: x.mean(dim=1, keepdim=True), lambda y: y.expand(-1, channels, -1, -1))


# By the names in configs/choices.py, from the known pixels (c, h, w): 1 where a pixel is known, 0 where it is
# to be found. Only inpainting has pixels to find.
DEGRADATIONS: dict[str, Callable[[Tensor], Degradation]] = {
    "inpainting": _inpainting,
    "sr2": lambda known: _averages(2),
    "sr4": lambda known: _averages(4),
    "colorization": lambda known: _grey(len(known)),
    "denoising": lambda known: Degradation(lambda x: x, lambda y: y),
}


def travel_path(S: int, length: int = 1, repeats: int = 1) -> list[tuple[int, int]]:
    """The moves between levels S … 0. Every `length` levels the chain goes up again, `repeats` - 1 times.

    It then denoises the same stretch anew, so that the parts agree at their seams (arXiv 2201.09865,
    section 4.2). A move up is `length` levels long.
    """
    ups = dict.fromkeys(range(1, S - length + 1, length), repeats - 1)
    k, path = S, []
    while k > 0:
        path.append((k, k - 1))
        k -= 1
        if ups.get(k, 0) > 0:
            ups[k] -= 1
            path.append((k, k + length))
            k += length
    return path


@torch.no_grad()
def ddnm(
    model: Model,
    x: Tensor,
    timesteps: Sequence[float],
    alphas_cumprod: Tensor,
    *,
    eta: float,
    end: float = CLEAN,
    randn_like: RandnLike,
    degradation: Degradation,
    y: Tensor,
    sigma_y: float = 0,
    travel: tuple[int, int] = (1, 1),
) -> Iterator[Step]:
    """DDIM with each x0 projected (arXiv 2212.00490, equations 13 and 14; 17 to 19 for a noisy y).

    x: x_T. y: what was measured, on x's scale, with noise of standard deviation sigma_y. travel: the length
    and the repeats of `travel_path`. A step is yielded for every evaluation; the last one's x0 is the result.
    """
    labels = [end, *timesteps]
    for k, k_next in travel_path(len(timesteps), *travel):
        t, t_next = labels[k], labels[k_next]
        a, a_next = alpha_bar(alphas_cumprod, t), alpha_bar(alphas_cumprod, t_next)

        # Go up: the forward process.
        if k_next > k:
            x = (a_next / a).sqrt() * x + (1 - a_next / a).sqrt() * randn_like(x)
            continue

        # Predict x0, and project it as far as the next level hides the noise of y.
        eps = model(x, label(x, t))
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        noise, hidden = float((1 - a_next).sqrt()), float(a_next.sqrt()) * sigma_y
        share = min(1.0, noise / hidden) if hidden else 1.0
        x0 = degradation.project(x0, y, share)

        # Take DDIM's step; the noise that came with y counts as a part of it.
        sigma = eta * ((1 - a / a_next) * (1 - a_next) / (1 - a)).sqrt()
        left = (max(0.0, noise**2 - (share * hidden) ** 2) ** 0.5) / noise if noise else 0.0
        x = a_next.sqrt() * x0 + left * (1 - a_next - sigma**2).clamp(min=0).sqrt() * eps
        if eta > 0:
            x = x + left * sigma * randn_like(x)
        yield Step(t, x, x0)
