"""ε, x0 and v are three forms of one model: of an exact Gaussian's they give the same images and numbers."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

from configs import DiffusionConfig, load_config
from functions.likelihood import bound_terms, gaussians
from functions.objectives import PREDICTIONS, Objective, noise_estimation_loss
from functions.samplers import last
from functions.schedules import SCHEDULES, alphas_cumprod, betas
from runners.diffusion import Diffusion

MEAN, SD = 0.3, 0.5


def gaussian_model(prediction):
    """The best network for x0 ~ N(MEAN, SD²) in every pixel: what it predicts, given x, is E[· | x]."""
    config = load_config("digits.yml")
    config = replace(config, model=replace(config.model, prediction=prediction))
    diffusion = Diffusion(config, "cpu")

    def network(x, t):
        t, below = t.double(), t.floor().long()
        known, share = diffusion.alphas_cumprod[1:].double().log(), t - below
        above = (below + 1).clamp(max=len(known) - 1)
        a = ((1 - share) * known[below] + share * known[above]).exp().view(-1, 1, 1, 1)
        variance = a * SD**2 + 1 - a
        eps = (1 - a).sqrt() * (x.double() - a.sqrt() * MEAN) / variance
        x0 = MEAN + a.sqrt() * SD**2 * (x.double() - a.sqrt() * MEAN) / variance
        return {"eps": eps, "x0": x0, "v": a.sqrt() * eps - (1 - a).sqrt() * x0}[prediction].float()

    diffusion.network = network
    return diffusion


@pytest.mark.parametrize("sample_type", ["generalized", "ddpm_noisy", "dpmsolver++"])
def test_they_sample_the_same_images(sample_type):
    images = {}
    for prediction in PREDICTIONS:
        diffusion = gaussian_model(prediction)
        sampling = diffusion.sampling(10, sample_type=sample_type)
        images[prediction] = last(diffusion.denoise(diffusion.latents(range(4)), sampling)).x
    assert images["eps"].std() > 0.2
    for prediction in ("x0", "v"):
        torch.testing.assert_close(images[prediction], images["eps"], rtol=1e-3, atol=1e-3)


def test_they_have_the_same_bound():
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8)))
    bits = {}
    for prediction in PREDICTIONS:
        diffusion = gaussian_model(prediction)
        of = gaussians(betas(diffusion.config.diffusion), "fixedlarge")
        generator = torch.Generator().manual_seed(0)
        terms = bound_terms(
            diffusion.eps, levels, of, -1, torch.device("cpu"),
            lambda x, generator=generator: torch.randn(x.shape, generator=generator, dtype=x.dtype),
        )  # fmt: skip
        bits[prediction] = sum(term.bits for term in terms)
    assert bits["eps"].min() > 1
    for prediction in ("x0", "v"):
        torch.testing.assert_close(bits[prediction], bits["eps"], rtol=1e-3, atol=0)


def loss_of(prediction, gamma, output, x0, t, eps, a, mean=False):
    objective = Objective(PREDICTIONS[prediction], mean, gamma)
    return noise_estimation_loss(lambda x, t: output, x0, t, eps, a, objective)


def test_min_snr_weighs_the_same_x0_error_alike():
    """arXiv 2303.09556, section 3.4: whatever is predicted, the loss is min(SNR, γ)·|x0 - x0'|²."""
    a = alphas_cumprod(betas(DiffusionConfig("linear", 1e-4, 0.02, 1000))).double()
    rng = torch.Generator().manual_seed(0)
    x0, eps, x0_model = torch.randn(3, 5, 1, 4, 4, generator=rng, dtype=torch.float64)
    t, gamma = torch.tensor([0, 50, 200, 500, 999]), 5.0
    ts = a[t + 1].view(-1, 1, 1, 1)
    x = ts.sqrt() * x0 + (1 - ts).sqrt() * eps
    eps_model = (x - ts.sqrt() * x0_model) / (1 - ts).sqrt()
    outputs = {"eps": eps_model, "x0": x0_model, "v": ts.sqrt() * eps_model - (1 - ts).sqrt() * x0_model}
    snr = (ts / (1 - ts)).flatten()
    assert snr.min() < gamma < snr.max()
    expected = torch.minimum(snr, torch.tensor(gamma)) * (x0 - x0_model).square().sum(dim=(1, 2, 3))
    for prediction, output in outputs.items():
        found = loss_of(prediction, gamma, output, x0, t, eps, a)
        torch.testing.assert_close(found, expected)
        plain = loss_of(prediction, None, output, x0, t, eps, a)
        torch.testing.assert_close(found / plain, {
            "eps": (gamma / snr).clamp(max=1), "x0": snr.clamp(max=gamma),
            "v": snr.clamp(max=gamma) / (1 + snr),
        }[prediction])  # fmt: skip
        torch.testing.assert_close(loss_of(prediction, None, output, x0, t, eps, a, mean=True), plain / 16)


def test_the_weight_is_finite_where_only_noise_is_left():
    a = torch.tensor([1.0, 0.5, 0.0])
    x0, eps, t = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0), torch.tensor([1])
    for prediction, expected in (("eps", 16.0), ("x0", 0.0), ("v", 0.0)):
        assert loss_of(prediction, 5.0, torch.zeros_like(x0), x0, t, eps, a).item() == expected


def test_the_cosine_is_diffusers():
    expected = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").betas
    ours = SCHEDULES["cosine"](1e-4, 0.02, 1000)
    torch.testing.assert_close(torch.from_numpy(ours).float(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name, rising", [("warmup10", 100), ("warmup50", 500)])
def test_the_warmups_rise_linearly_and_stay(name, rising):
    ours = SCHEDULES[name](1e-4, 0.02, 1000)
    assert len(ours) == 1000 and (ours[rising:] == 0.02).all()
    assert ours[0] == 1e-4 and ours[rising - 1] == pytest.approx(0.02)
    np.testing.assert_allclose(np.diff(ours[:rising], 2), 0, atol=1e-12)
