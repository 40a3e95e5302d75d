"""DDNM: its projections are those of linear algebra, its steps the paper's, its travels RePaint's."""

from itertools import pairwise

import pytest
import torch

from configs import DiffusionConfig
from functions.restoration import DEGRADATIONS, ddnm, travel_path
from functions.samplers import generalized, last
from functions.schedules import alphas_cumprod, betas

A = alphas_cumprod(betas(DiffusionConfig("linear", 0.0001, 0.02, 1000))).double()
SHAPE = (3, 4, 4)
KNOWN = (torch.arange(48).view(SHAPE) % 3 > 0).double()
TAU = range(0, 1000, 50)


def matrix(apply, shape):
    """A linear map of (b, *shape) as a matrix, from what it does to the unit vectors."""
    n = torch.Size(shape).numel()
    return apply(torch.eye(n, dtype=torch.float64).view(n, *shape)).reshape(n, -1).T


def noise(n=2, seed=0):
    return torch.randn(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(x, t):
    return torch.tanh(2 * x + x.mean(dim=(1, 2, 3), keepdim=True) + t.view(-1, 1, 1, 1) / 500)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_pseudo_inverse_is_that_of_linear_algebra(name):
    degradation = DEGRADATIONS[name](KNOWN)
    y = degradation.apply(noise())
    forward, back = matrix(degradation.apply, SHAPE), matrix(degradation.pseudo_inverse, y.shape[1:])
    exact = torch.linalg.pinv(forward)
    if name == "inpainting":  # it is only given what A gives, which is 0 where nothing is known
        back = back @ forward
        exact = exact @ forward
    assert (back - exact).abs().max() < 1e-12


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_a_step_is_that_of_the_paper_and_the_result_agrees_with_y(name):
    """Equations 13 and 14 by matrices, at η = 0.85."""
    degradation, y = DEGRADATIONS[name](KNOWN), DEGRADATIONS[name](KNOWN).apply(noise(seed=1))
    forward, x, draws = matrix(degradation.apply, SHAPE), noise(), [noise(seed=k) for k in range(2, 30)]
    back, ours = torch.linalg.pinv(forward), iter(draws)
    how = {"eta": 0.85, "randn_like": lambda x: next(ours), "degradation": degradation, "y": y}
    step = last(ddnm(network, x, TAU, A, **how))
    for (t, t_next), z in zip(pairwise([*reversed(TAU), -1]), draws, strict=False):
        a, b = A[t + 1], A[t_next + 1]
        eps = network(x, torch.full((2,), t))
        x0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).flatten(1)
        x0 = x0 + (y.flatten(1) - x0 @ forward.T) @ back.T
        sigma = 0.85 * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        x = b.sqrt() * x0.view(x.shape) + (1 - b - sigma**2).clamp(min=0).sqrt() * eps + sigma * z
    assert (step.x0 - x).abs().max() < 1e-9
    assert (degradation.apply(step.x0) - y).abs().max() < 1e-12


def test_independent_pixels_are_found_as_if_nothing_were_known():
    """Where they say nothing of one another, the posterior of an unknown pixel is the model itself."""

    def white(x, t):
        return (1 - A[t[0] + 1]).sqrt() / (0.25 * A[t[0] + 1] + 1 - A[t[0] + 1]) * x

    degradation, x = DEGRADATIONS["inpainting"](KNOWN), noise()
    how = {"eta": 0, "randn_like": torch.randn_like}
    found = last(
        ddnm(white, x, TAU, A, **how, degradation=degradation, y=degradation.apply(noise(seed=1)))
    ).x0
    plain = last(generalized(white, x, TAU, A, **how)).x
    assert (found - plain)[:, KNOWN == 0].abs().max() < 1e-12


@pytest.mark.parametrize("name", ["inpainting", "sr2", "colorization"])
def test_dependent_pixels_are_found_exactly(name):
    """Gaussian images in a plane of three dimensions, of which y decides all: the posterior is the image."""
    directions = torch.linalg.qr(noise(3, seed=3).flatten(1).T).Q * 4

    def in_plane(x, t):
        a = A[t[0] + 1]
        x0 = (16 * a.sqrt() / (16 * a + 1 - a) / 16 * x.flatten(1) @ directions @ directions.T).view(x.shape)
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    degradation = DEGRADATIONS[name](KNOWN)
    images = (noise(seed=1).flatten(1)[:, :3] @ directions.T).view(-1, *SHAPE)
    how = {"eta": 0, "randn_like": torch.randn_like, "degradation": degradation}
    chains = [ddnm(in_plane, noise(), range(0, 1000, 1000 // S), A, **how, y=degradation.apply(images))
              for S in (50, 100, 200)]  # fmt: skip
    errors = [(last(chain).x0 - images).abs().max() for chain in chains]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 2e-3 * images.abs().max()


def test_noise_in_y_is_not_kept():
    """Images that are constant, from pixels with noise: the result is nearer to them than y is."""

    def flat(x, t):
        a = A[t[0] + 1]
        x0 = (x.mean(dim=(2, 3), keepdim=True) / a.sqrt()).expand_as(x)
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    truth, error = torch.full((2, *SHAPE), 0.3, dtype=torch.float64), 0.2 * noise(seed=1)
    how = {"eta": 0.85, "randn_like": torch.randn_like, "degradation": DEGRADATIONS["denoising"](KNOWN)}
    torch.manual_seed(0)
    found = last(ddnm(flat, noise(), TAU, A, **how, y=truth + error, sigma_y=0.2)).x0
    assert (found - truth).square().mean() < 0.5 * error.square().mean()


def test_travels_are_those_of_repaint():
    """250 levels by its 10 and 10: 4570 moves of one level, of which 2410 call the network."""
    path = travel_path(250, 10, 10)
    assert sum(abs(a - b) for a, b in path) == 4570 and sum(b < a for a, b in path) == 2410
    assert all(b == c for (_, b), (c, _) in pairwise(path)) and path[0][0] == 250 and path[-1] == (1, 0)
    assert travel_path(3) == [(3, 2), (2, 1), (1, 0)]
