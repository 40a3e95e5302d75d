"""Bits per dimension have closed forms for Gaussian data, and the bins hold all the mass."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from functions.likelihood import bound_terms, discretized_nll, gaussians, prior_bits
from functions.noise import Stream, step_noise

CPU = torch.device("cpu")


def gaussian_predictor(of, m, s):
    """The exact E[ε | x_t] for x0 ~ N(m, s²)."""
    alphas = torch.from_numpy(of.alphas_cumprod)

    def model(x, t):
        a = alphas[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x.double() - a.sqrt() * m) / (a * s**2 + 1 - a)

    return model


def gaussian_levels(n, m, s, low):
    x = np.random.default_rng(0).normal(m, s, (n, 1, 8, 8))
    return torch.from_numpy(np.clip(np.round((x - low) / (1 - low) * 255), 0, 255))


@pytest.mark.parametrize("low, m, s", [(-1.0, 0.1, 0.15), (0.0, 0.5, 0.08)])
@pytest.mark.parametrize("var_type", ["fixedlarge", "fixedsmall"])
def test_gaussian_data_and_model_have_a_closed_form(low, m, s, var_type):
    """With ε = ±1, each image once with either sign, second moments are exact, and L_t knows nothing else."""
    betas = np.linspace(1e-4, 0.02, 200)
    of = gaussians(betas, var_type)
    levels = gaussian_levels(4, m, s, low)
    signs = torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], levels.shape))
    eps = torch.cat([signs, -signs])
    model = gaussian_predictor(of, m, s)
    terms = list(bound_terms(model, levels.repeat(2, 1, 1, 1), of, low, CPU, lambda x: eps.to(x)))

    x0 = (low + (1 - low) * levels / 255).numpy()
    second = np.mean((x0 - m) ** 2)
    a = np.cumprod(1 - betas)
    a_prev = np.append(1, a[:-1])
    k = np.sqrt(a) * s**2 / (a * s**2 + 1 - a)  # x̂0 = m + k·(x_t - √ᾱ·m)
    x0_error = (1 - np.sqrt(a) * k) ** 2 * second + k**2 * (1 - a)
    tilde = betas * (1 - a_prev) / (1 - a)
    variance = betas if var_type == "fixedlarge" else tilde
    shift = a_prev * (betas / (1 - a)) ** 2 * x0_error
    kl = (np.log(variance[1:] / tilde[1:]) + (tilde + shift)[1:] / variance[1:] - 1) / np.log(4)
    assert [term.bits.mean().item() for term in terms[1:]] == pytest.approx(kl, rel=1e-5)
    assert [term.x0_mse.mean().item() for term in terms] == pytest.approx(
        x0_error * (255 / (1 - low)) ** 2, rel=1e-5
    )
    assert [term.eps_mse.mean().item() for term in terms] == pytest.approx(a / (1 - a) * x0_error, rel=1e-5)
    prior = (a[-1] * np.mean(x0**2) - a[-1] - np.log(1 - a[-1])) / np.log(4)
    assert prior_bits(levels, of, low).mean().item() == pytest.approx(prior, rel=1e-9)

    half, sd = (1 - low) / 510, tilde[1] ** 0.5
    predicted = [m + k[0] * (np.sqrt(a[0]) * (x0 - m) + e * np.sqrt(1 - a[0])) for e in (-1, 1)]
    masses = [norm.cdf(x0 + half, mean, sd) - norm.cdf(x0 - half, mean, sd) for mean in predicted]
    assert terms[0].bits.mean().item() == pytest.approx(-np.mean(np.log2(masses)), rel=1e-5)


def test_the_bound_is_just_above_the_likelihood_that_gaussian_data_really_have():
    m, s, n = 0.1, 0.2, 64
    levels = gaussian_levels(n, m, s, -1.0)
    x0 = levels.numpy() / 127.5 - 1
    truth = -np.log2(norm.cdf(x0 + 1 / 255, m, s) - norm.cdf(x0 - 1 / 255, m, s)).mean()
    of = gaussians(np.linspace(1e-4, 0.02, 1000), "fixedlarge")
    noise = step_noise(1, range(n), (1, 8, 8), 1000, CPU, Stream.LIKELIHOOD)
    terms = bound_terms(gaussian_predictor(of, m, s), levels, of, -1.0, CPU, noise)
    bound = (prior_bits(levels, of, -1.0) + sum(term.bits for term in terms)).mean().item()
    assert truth + 0.03 < bound < truth + 0.15  # 6.72 bits, and a bound of 6.82


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_the_bins_hold_all_the_mass_and_far_tails_keep_their_digits(low):

    def nll(levels, mean, sd):
        levels = torch.as_tensor(levels, dtype=torch.float64)
        return discretized_nll(levels, torch.full_like(levels, mean), sd**2, low)

    for mean in (low, 0.3, 1.0):
        for sd in (0.005, 0.1, 3.0):
            assert (-nll(np.arange(256), mean, sd)).exp().sum().item() == pytest.approx(1, abs=1e-12)
    # 40 standard deviations away, where a difference of two cdf is 0: the mass above a point, by scipy.
    width = (1 - low) / 255
    for level, mean in ((255.0, 1 - 40.5 * width), (0.0, low + 40.5 * width)):
        assert nll(level, mean, width).item() == pytest.approx(-norm.logsf(40), rel=1e-9)
    inner = -norm.logsf(39.5) - np.log1p(-np.exp(norm.logsf(40.5) - norm.logsf(39.5)))
    assert nll([200, 120], low + 160 * width, width).tolist() == pytest.approx([inner, inner], rel=1e-9)
