"""--test: bits per dimension are those of the paper's formulas in float64, whatever the batch."""

import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm
from sklearn.datasets import load_digits
from support.program import files_below, main, refuses, small_config, two_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributions import Normal, kl_divergence

from configs import load_config
from functions.noise import Stream
from runners.diffusion import build_unet

T = 20


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
    """The paper's section 3 in float64, t = 1..T: L_T and [L_0 .. L_{T-1}] by image, MSE of ε and x0."""
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
    """Nothing is dequantized here. The images are the first n of the seed's permutation of the split."""
    config = small(tmp_path / "c.yml", model__var_type=var_type, data__rescaled=low == -1)
    got, printed = evaluate(run, config, tmp_path, "--num_samples", n, "--seed", 5, "--reference", split)
    assert got["validation_loss"]["images"] == n  # the same images serve both
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


def test_the_batch_and_the_processes_change_nothing(run, config, tmp_path):
    """Five images over two processes in batches of two: 3 and 2 of them."""
    arguments = ("--num_samples", 5, "--batch_size")
    results = [
        evaluate(run, config, tmp_path / exp, *arguments, batch_size)[0]
        for exp, batch_size in (("a", 5), ("b", 2))
    ]
    command = ("--config", config, "--exp", tmp_path / "c", "--ckpt", run.ckpt)
    said = two_ranks(*command, "--test --num_samples 5 --batch_size 2")
    assert said.stdout.count("bits/dim (an upper bound)") == 1
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
        ["--weights raw"],
        ["--seed 1"],
        ["--num_samples 3"],
        ["--reference train"],
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
    command = ("--config", config, "--exp", tmp_path, "--ckpt", run.ckpt, "--test")
    refuses(*command, *arguments, says=says, tree=tmp_path)


def test_the_reference_is_for_test(tmp_path):
    refuses(
        "--config digits.yml --doc d --reference train",
        says=["--reference goes with --metrics or --test"],
        tree=tmp_path,
    )


def test_weights_that_overflow_give_no_number(run, config, tmp_path):
    ema = torch.load(run.ckpt, weights_only=True)["ema"]
    torch.save(ema | {"conv_out.bias": torch.full_like(ema["conv_out.bias"], 3e38)}, tmp_path / "broken.pth")
    command = ("--config", config, "--exp", tmp_path, "--ckpt", tmp_path / "broken.pth")
    refuses(*command, "--test --num_samples 2", says=["not finite", "weights"], tree=tmp_path, code=1)
