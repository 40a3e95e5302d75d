"""Encoding is DDIM's ODE upwards: exact for Gaussian data, of first order, and diffusers' to the bit."""

import diffusers
import pytest
import torch

from configs import DiffusionConfig
from functions.inversion import encode
from functions.samplers import generalized, last
from functions.schedules import alpha_bar, alphas_cumprod, betas

A = alphas_cumprod(betas(DiffusionConfig("linear", 0.0001, 0.02, 1000))).double()
SPREAD = 0.5  # of the data, N(0, 0.25) in every dimension


def of_gaussian(x, t):
    """The ε of the exact network for these data: linear in x."""
    a = alpha_bar(A, t).view(-1, 1, 1, 1).to(x.dtype)
    return (1 - a).sqrt() / (a * SPREAD**2 + 1 - a) * x


def images(n=4):
    return SPREAD * torch.randn(n, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def deviation(t):
    a = alpha_bar(A, t)
    return (a * SPREAD**2 + 1 - a).sqrt()


def decode(x, timesteps, end=-1):
    return last(generalized(of_gaussian, x, timesteps, A, eta=0, end=end, randn_like=torch.randn_like)).x


@pytest.mark.parametrize("inversion", ["to", "from"])
def test_it_converges_to_the_closed_form_at_first_order(inversion):
    """The ODE maps x0 to x0 · (standard deviation at T) / (that of the data); so do encode and decode."""
    x0, there, back = images(), [], []
    for S in (50, 100, 200):
        timesteps = [900 * (k / S) ** 2 for k in range(3, S + 1)]  # evenly in ρ where ρ is small
        x = last(encode(of_gaussian, x0, timesteps, A, end=0, inversion=inversion)).x
        exact = x0 * deviation(900.0) / deviation(0.0)
        there.append((S * (x - exact).abs().max()).item())
        back.append((S * (decode(x, timesteps, 0) - x0).abs().max()).item())
    for errors in (there, back):  # S · error is constant
        assert max(errors) < 1.35 * min(errors) and max(errors) > 0.1


def test_the_label_it_goes_to_is_the_better_one():
    x0, timesteps = images(), range(0, 1000, 50)
    error = {
        inversion: (
            decode(last(encode(of_gaussian, x0, timesteps, A, inversion=inversion)).x, timesteps) - x0
        )
        .square()
        .mean()
        for inversion in ("to", "from")
    }
    assert error["to"] < error["from"]


def test_it_is_the_inverse_scheduler_of_diffusers():
    scheduler = diffusers.DDIMInverseScheduler(
        trained_betas=betas(DiffusionConfig("linear", 0.0001, 0.02, 1000)),
        set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading", clip_sample=False,
    )  # fmt: skip
    scheduler.alphas_cumprod = A[1:]
    scheduler.set_timesteps(20)

    def network(x, t):
        return torch.tanh(3 * x + t.view(-1, 1, 1, 1) / 500)

    x = images()
    for step in encode(network, images(), scheduler.timesteps.tolist(), A):
        x = scheduler.step(network(x, torch.tensor([step.t])), step.t, x).prev_sample
        assert (step.x - x).abs().max() < 1e-12
