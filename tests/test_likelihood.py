"""Bits per dimension: against the paper's formulas written out in float64, closed forms for Gaussians, and scipy."""

import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import files_below, main, refuses, small_config
from PIL import Image
from scipy.stats import norm
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_distributed import torchrun
from torch.distributions import Normal, kl_divergence

from configs import load_config
from functions.likelihood import bound_terms, chain, discretized_nll, prior_bits
from functions.noise import Stream, step_noise
from runners.diffusion import build_unet

T = 20
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small(tmp_path_factory.mktemp("config") / "c.yml")


def small(path, **changes):
    """A chain of 20 timesteps, so that each test takes a moment."""
    return small_config(
        path, **(dict(diffusion__num_diffusion_timesteps=T, diffusion__beta_end=0.3) | changes)
    )


def evaluate(run, config, exp, *arguments):
    """What --test wrote, and what it printed."""
    before = files_below(exp)
    printed = main("--config", config, "--exp", exp, "--ckpt", run.ckpt, "--test", *arguments).stdout
    (path,) = (path for path in exp.rglob("*.json") if str(path) not in before)
    return json.loads(path.read_text()), printed


def oracle(run, config, split, n, seed, low):
    """The paper's section 3 with its t = 1..T, the network in float64: L_T and [L_0 .. L_{T-1}] by image, MSE of ε, of x0."""
    settings = load_config(str(config))
    network = build_unet(settings).eval()
    network.load_state_dict(torch.load(run.ckpt, weights_only=True)["ema"])
    network.double().temb.dense[0].register_forward_pre_hook(lambda _, arguments: (arguments[0].double(),))

    of_split = [i for i in range(1797) if (i % 6 == 5) == (split == "test")]
    chosen = sorted(np.random.default_rng([seed, 0, Stream.CHOICE]).permutation(len(of_split))[:n])
    noise = [np.random.default_rng([seed, i, Stream.LIKELIHOOD]) for i in chosen]
    levels = torch.from_numpy(np.round(load_digits().images[[of_split[i] for i in chosen]] * (255 / 16)))[
        :, None
    ]
    x0 = levels / 255 if low == 0 else levels / 127.5 - 1
    half = (1 - low) / 510

    beta = [float("nan"), *np.linspace(1e-4, 0.3, T)]
    alpha = [1.0]
    for t in range(1, T + 1):
        alpha.append(alpha[-1] * (1 - beta[t]))
    tilde = [(1 - alpha[t - 1]) / (1 - alpha[t]) * beta[t] if t else float("nan") for t in range(T + 1)]
    prior = kl_divergence(
        Normal(alpha[T] ** 0.5 * x0, (1 - alpha[T]) ** 0.5), Normal(0.0, torch.ones_like(x0))
    )
    terms, eps_mse, x0_mse = [], [], []
    for t in range(1, T + 1):
        eps = torch.from_numpy(
            np.stack([g.standard_normal((1, 8, 8), dtype=np.float32) for g in noise])
        ).double()
        x = alpha[t] ** 0.5 * x0 + (1 - alpha[t]) ** 0.5 * eps
        with torch.no_grad():
            predicted = network(x, torch.full((n,), t - 1))
        x0_predicted = ((x - (1 - alpha[t]) ** 0.5 * predicted) / alpha[t] ** 0.5).clip(low, 1)

        def mean(start, t=t, x=x):
            return (alpha[t - 1] ** 0.5 * beta[t] * start + (1 - beta[t]) ** 0.5 * (1 - alpha[t - 1]) * x) / (
                1 - alpha[t]
            )

        variance = tilde[2] if t == 1 else beta[t] if settings.model.var_type == "fixedlarge" else tilde[t]
        if t > 1:
            terms.append(
                kl_divergence(Normal(mean(x0), tilde[t] ** 0.5), Normal(mean(x0_predicted), variance**0.5))
            )
        else:
            distance = (x0 - mean(x0_predicted)).abs().numpy()
            inner, outer = (
                norm.sf(distance - half, scale=variance**0.5),
                norm.sf(distance + half, scale=variance**0.5),
            )
            at_edge = ((levels == 0) | (levels == 255)).numpy()
            mass = np.where(
                at_edge, inner, inner - outer
            )  # x0_predicted is clipped, so an outermost bin is beyond it
            terms.append(torch.from_numpy(-np.log(mass)))
        eps_mse.append((eps - predicted).square().mean().item())
        x0_mse.append(((x0 - x0_predicted) * (255 if low == 0 else 127.5)).square().mean().item())
    per_image = [(term / np.log(2)).mean(dim=(1, 2, 3)).numpy() for term in (prior, *terms)]
    return per_image[0], per_image[1:], eps_mse, x0_mse


@pytest.mark.parametrize(
    "split, n, var_type, low",
    [("test", 3, "fixedlarge", -1), ("train", 4, "fixedsmall", -1), ("test", 7, "fixedsmall", 0)],
)
def test_every_number_is_that_of_the_papers_formulas(run, tmp_path, split, n, var_type, low):
    """The config dequantizes in training: not here. The images are the first n of the seed's permutation of the split."""
    config = small(tmp_path / "c.yml", model__var_type=var_type, data__rescaled=low == -1)
    got, printed = evaluate(run, config, tmp_path, "--num_samples", n, "--seed", 5, "--reference", split)
    prior, terms, eps_mse, x0_mse = oracle(run, config, split, n, 5, low)
    exactly = dict(rel=2e-5, abs=1e-9)
    by_t = got["per_timestep"]
    assert by_t["t"] == list(range(T))
    assert by_t["bits_per_dim"] == pytest.approx([term.mean() for term in terms], **exactly)
    assert by_t["eps_mse"] == pytest.approx(eps_mse, **exactly)
    assert by_t["rmse"] == pytest.approx(np.sqrt(x0_mse), **exactly)
    assert by_t["rate"] == pytest.approx(
        [prior.mean() + sum(np.mean(term) for term in terms[t + 1 :]) for t in range(T)], **exactly
    )
    steps = sum(terms[1:])
    parts = {
        "bits_per_dim": prior + steps + terms[0],
        "L_T": prior,
        "sum_L_t": steps,
        "L_0": terms[0],
        "rate": prior + steps,
    }
    for key, values in parts.items():
        assert got[key]["mean"] == pytest.approx(values.mean(), **exactly)
        assert got[key]["standard_error"] == pytest.approx(values.std(ddof=1) / n**0.5, **exactly)
    assert got["distortion"] == {"bits_per_dim": got["L_0"], "rmse": by_t["rmse"][0]}
    total, error = got["bits_per_dim"].values()
    assert re.search(rf"^bits/dim .* {total:.4f} +{error:.4f} +{n}$", printed, re.MULTILINE)
    assert (
        f"{n} of {299 if split == 'test' else 1498} {split} images, seed 5, ema weights of {run.ckpt}"
        in printed
    )


def gaussian_predictor(gaussians, m, s):
    """The exact E[ε | x_t] for x0 ~ N(m, s²)."""
    alphas = torch.from_numpy(gaussians.alphas_cumprod)

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
    gaussians = chain(betas, var_type)
    levels = gaussian_levels(4, m, s, low)
    signs = torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], levels.shape))
    eps = torch.cat([signs, -signs])
    model = gaussian_predictor(gaussians, m, s)
    terms = list(bound_terms(model, levels.repeat(2, 1, 1, 1), gaussians, low, CPU, lambda x: eps.to(x)))

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
    assert prior_bits(levels, gaussians, low).mean().item() == pytest.approx(prior, rel=1e-9)

    half, sd = (1 - low) / 510, tilde[1] ** 0.5
    predicted = [m + k[0] * (np.sqrt(a[0]) * (x0 - m) + e * np.sqrt(1 - a[0])) for e in (-1, 1)]
    masses = [norm.cdf(x0 + half, mean, sd) - norm.cdf(x0 - half, mean, sd) for mean in predicted]
    assert terms[0].bits.mean().item() == pytest.approx(-np.mean(np.log2(masses)), rel=1e-5)


def test_the_bound_is_just_above_the_likelihood_that_gaussian_data_really_have():
    m, s, n = 0.1, 0.2, 64
    levels = gaussian_levels(n, m, s, -1.0)
    x0 = levels.numpy() / 127.5 - 1
    truth = -np.log2(norm.cdf(x0 + 1 / 255, m, s) - norm.cdf(x0 - 1 / 255, m, s)).mean()
    gaussians = chain(np.linspace(1e-4, 0.02, 1000), "fixedlarge")
    noise = step_noise(1, range(n), (1, 8, 8), 1000, CPU, Stream.LIKELIHOOD)
    terms = bound_terms(gaussian_predictor(gaussians, m, s), levels, gaussians, -1.0, CPU, noise)
    bound = (prior_bits(levels, gaussians, -1.0) + sum(term.bits for term in terms)).mean().item()
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


def test_the_batch_and_the_processes_change_nothing(run, config, tmp_path):
    """Five images over two processes in batches of two: 3 and 2 of them."""
    arguments = ("--num_samples", 5, "--batch_size")
    results = [
        evaluate(run, config, tmp_path / exp, *arguments, batch_size)[0]
        for exp, batch_size in (("a", 5), ("b", 2))
    ]
    command = (
        "--config",
        config,
        "--exp",
        tmp_path / "c",
        "--ckpt",
        run.ckpt,
        "--test",
        "--num_samples",
        5,
        "--batch_size",
        2,
    )
    assert torchrun(*command).stdout.count("bits/dim (an upper bound)") == 1
    (path,) = (tmp_path / "c").rglob("*.json")
    results.append(json.loads(path.read_text()))
    for one, other in pairwise(results):
        assert one["decides"] == other["decides"]
        for key in ("bits_per_dim", "L_T", "L_0"):
            assert one[key] == pytest.approx(other[key], rel=1e-6)
        for key, values in one["per_timestep"].items():
            assert values == pytest.approx(other["per_timestep"][key], rel=1e-5)


def test_what_it_writes_and_never_replaces(run, config, tmp_path):
    shutil.copytree(run.exp / "logs" / "d", tmp_path / "logs" / "d")
    command = ("--config", config, "--exp", tmp_path, "--doc", "d", "--test", "--num_samples", 2)
    main(*command)
    (path,) = (tmp_path / "logs" / "d").glob("*.json")
    assert re.fullmatch(r"test_2_test_seed1234_[0-9a-f]{8}\.json", path.name)
    first = json.loads(path.read_text())
    with Image.open(path.with_suffix(".png")) as picture:
        assert min(picture.size) > 300 and len(picture.convert("L").getcolors()) > 20
    main(*command)  # the same again: the same files
    assert len(list((tmp_path / "logs" / "d").glob("test_*"))) == 2
    again = json.loads(path.read_text())
    assert {**again, "records": None} == {**first, "records": None}

    events = EventAccumulator(str(tmp_path / "tensorboard" / "d" / path.stem)).Reload()
    assert {"test/bits_per_dim", "test/eps_mse", "test/rate", "test/rmse"} == set(events.Tags()["scalars"])
    for name, values in first["per_timestep"].items():
        if name != "t":
            scalars = events.Scalars(f"test/{name}")
            assert [event.step for event in scalars] == list(range(T))
            assert [event.value for event in scalars] == pytest.approx(values, rel=1e-6)

    other = small(tmp_path / "other.yml", model__var_type="fixedsmall")
    for change in (
        ("--config", other),
        ("--weights", "raw"),
        ("--seed", 1),
        ("--num_samples", 3),
        ("--reference", "train"),
    ):
        main(*command, *change)
    assert len(list((tmp_path / "logs" / "d").glob("test_*.json"))) == 6
    assert json.loads(path.read_text()) == again


def test_a_modest_number_of_images_unless_told(run, config, tmp_path):
    got, printed = evaluate(run, config, tmp_path, "--batch_size", 128)
    assert got["images"] == 128 and "128 of 299 test images" in printed
    for split, n in (("train", 1), ("test", 3)):
        (tmp_path / split).mkdir()
        for i in range(n):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / split / f"{i}.png")
    folder = small(tmp_path / "f.yml", data__dataset="FOLDER")
    got, printed = evaluate(run, folder, tmp_path, "--data", tmp_path)
    assert got["images"] == 3 and "3 of 3 test images" in printed


def test_one_image_has_no_standard_error(run, config, tmp_path):
    got, printed = evaluate(run, config, tmp_path, "--num_samples", 1)
    assert got["bits_per_dim"]["standard_error"] is None and "nan" not in printed


def test_jsd_begins_where_something_of_the_image_is_left(run, tmp_path):
    jsd = small(tmp_path / "c.yml", diffusion__beta_schedule="jsd")
    command = ("--config", jsd, "--exp", tmp_path, "--ckpt", run.ckpt, "--test", "--num_samples", 2)
    assert f"the bound begins at t = {T - 2}" in main(*command).stderr
    (path,) = tmp_path.rglob("*.json")
    assert len(json.loads(path.read_text())["per_timestep"]["t"]) == T - 1


def test_bayesian_weights_are_evaluated_like_the_others(run, config, tmp_path):
    ema = torch.load(run.ckpt, weights_only=True)["ema"]
    torch.save(ema | {"logvar": torch.zeros(T)}, tmp_path / "bayesian.pth")
    bayesian = small(tmp_path / "c.yml", model__type="bayesian")
    simple, _ = evaluate(run, config, tmp_path, "--num_samples", 2)
    got, _ = evaluate(run, bayesian, tmp_path, "--num_samples", 2, "--ckpt", tmp_path / "bayesian.pth")
    assert got["per_timestep"] == simple["per_timestep"]


@pytest.mark.parametrize(
    "changes, arguments, says",
    [
        ({}, ["--num_samples", 300], ["--num_samples is 300", "test split has 299 images"]),
        ({}, ["--reference", "valid"], ["--reference is 'valid'", "test or train"]),
        (dict(data__rescaled=False, data__logit_transform=True), [], ["data.logit_transform", "bits/dim"]),
        (dict(diffusion__num_diffusion_timesteps=1), [], ["at least 2 timesteps", "has 1"]),
        (
            dict(diffusion__num_diffusion_timesteps=2, diffusion__beta_schedule="jsd"),
            [],
            ["at least 2 timesteps", "has 1"],
        ),
    ],
)
def test_what_has_no_answer_is_refused(run, tmp_path, changes, arguments, says):
    config = small(tmp_path / "c.yml", **changes)
    refuses(
        "--config",
        config,
        "--exp",
        tmp_path,
        "--ckpt",
        run.ckpt,
        "--test",
        *arguments,
        says=says,
        tree=tmp_path,
    )


def test_the_reference_is_for_test(tmp_path):
    refuses(
        "--config",
        "digits.yml",
        "--doc",
        "d",
        "--reference",
        "train",
        says=["--reference goes with --metrics or --test"],
        tree=tmp_path,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_give_no_number(run, config, tmp_path, value):
    ema = torch.load(run.ckpt, weights_only=True)["ema"]
    torch.save(ema | {"conv_out.bias": torch.full_like(ema["conv_out.bias"], value)}, tmp_path / "broken.pth")
    command = (
        "--config",
        config,
        "--exp",
        tmp_path,
        "--ckpt",
        tmp_path / "broken.pth",
        "--test",
        "--num_samples",
        2,
    )
    refuses(*command, says=["not finite", "weights"], tree=tmp_path, code=1)
