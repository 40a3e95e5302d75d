"""The optional keys of a training recipe do what their closed forms say, in a real run."""

import math

import pytest
import torch
import yaml
from support.program import ROOT, main, small_config
from support.runs import losses

from configs import load_config
from functions.noise import BatchDraws
from runners.diffusion import build_unet

LR, DECAY, BETA1, BETA2, EPS = 0.01, 0.1, 0.9, 0.95, 1e-8


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Six steps of AdamW, the first two a warm-up, then a cosine; DDPM's first weights; a young average."""
    tmp = tmp_path_factory.mktemp("recipe")
    optim = dict(optimizer="AdamW", lr=LR, weight_decay=DECAY, beta1=BETA1, beta2=BETA2, eps=EPS)
    config = small_config(
        tmp / "c.yml", **{f"optim__{key}": value for key, value in optim.items()},
        optim__warmup=2, optim__decay="cosine", training__n_iters=6, training__snapshot_freq=1,
        training__validation_freq=9, training__loss="mean", model__zero_init=True, model__ema_warmup=True,
        training__batch_size=64, model__dropout=0.0,
    )  # fmt: skip
    main("--config", config, "--exp", tmp, "--doc", "d")
    saved = [torch.load(tmp / "logs" / "d" / f"ckpt_{k}.pth", weights_only=True) for k in range(1, 7)]
    return tmp, saved


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine_to_zero(recipe):
    rates = [saved["optimizer"]["param_groups"][0]["lr"] for saved in recipe[1]]
    cosine = [LR * math.cos(math.pi / 8 * k) ** 2 for k in (1, 2, 3)]  # (1 + cos 2x)/2 = cos² x
    assert rates == pytest.approx([LR / 2, LR, *cosine, 0], abs=1e-12)


def test_adamw_is_its_equations(recipe):
    """arXiv 1711.05101, algorithm 2, in float64; the gradient is read from the first moment."""
    for before, after in zip(recipe[1], recipe[1][1:], strict=False):
        k, lr = after["step"], after["optimizer"]["param_groups"][0]["lr"]
        for i, name in enumerate(after["model"]):
            m0, v0 = (before["optimizer"]["state"][i][key].double() for key in ("exp_avg", "exp_avg_sq"))
            m, v = (after["optimizer"]["state"][i][key].double() for key in ("exp_avg", "exp_avg_sq"))
            gradient = (m - BETA1 * m0) / (1 - BETA1)
            torch.testing.assert_close(v, BETA2 * v0 + (1 - BETA2) * gradient**2, rtol=1e-3, atol=1e-9)
            step = (m / (1 - BETA1**k)) / ((v / (1 - BETA2**k)).sqrt() + EPS)
            expected = before["model"][name].double() * (1 - lr * DECAY) - lr * step
            torch.testing.assert_close(after["model"][name].double(), expected, rtol=1e-4, atol=1e-6)


def test_a_young_average_follows_the_weights(recipe):
    for before, after in zip(recipe[1], recipe[1][1:], strict=False):
        n = before["step"]
        rate = min(0.9, (1 + n) / (10 + n))
        for name, value in after["ema"].items():
            expected = rate * before["ema"][name] + (1 - rate) * after["model"][name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


def test_zero_initialisation_begins_with_eps_of_zero(recipe):
    """So the first loss is ε's own mean square, which is 1, and the weights are Xavier's."""
    assert losses(recipe[0], "d")[0] == pytest.approx(1, abs=0.05)
    config = load_config("ddpm_cifar10.yml")
    model = build_unet(config)
    with torch.no_grad():
        assert not model(torch.randn(1, 3, 32, 32), torch.tensor([500])).any()
    weight = model.mid.block_1.conv1.weight  # 256 → 256, 3 × 3: a variance of 1 / (9 · 256)
    assert weight.var().item() == pytest.approx(1 / 2304, rel=0.02)
    assert not any(value.any() for name, value in model.named_parameters() if name.endswith("conv1.bias"))


def test_the_mean_loss_is_the_sum_over_the_numbers_of_an_image(tmp_path):
    for loss in ("sum", "mean"):
        config = small_config(tmp_path / "c.yml", training__n_iters=1, training__loss=loss)
        main("--config", config, "--exp", tmp_path, "--doc", loss)
    assert losses(tmp_path, "sum")[0] == pytest.approx(64 * losses(tmp_path, "mean")[0], rel=1e-5)


def test_timesteps_are_antithetic_or_not():
    def draws():
        return BatchDraws(torch.Generator().manual_seed(3), 1000, slice(0, 1000))

    pairs, independent = draws().t(1000), draws().t(1000, antithetic=False)
    half = len(pairs) // 2
    assert torch.equal(pairs[half + 1 :], 999 - pairs[: half - 1])
    assert not torch.equal(independent[half + 1 :], 999 - independent[: half - 1])
    assert abs(torch.corrcoef(torch.stack([independent[:half], independent[half:]]).float())[0, 1]) < 0.15


@pytest.mark.parametrize(
    "ours, upstreams", [("ddpm_cifar10.yml", "cifar10.yml"), ("ddpm_lsun.yml", "church.yml")]
)
def test_ddpms_configs_are_upstreams_with_ddpms_training(ours, upstreams):
    ours, upstreams = (yaml.safe_load((ROOT / "configs" / name).read_text()) for name in (ours, upstreams))
    found = {
        f"{section}.{key}": value
        for section, keys in ours.items()
        for key, value in keys.items()
        if upstreams[section].get(key) != value
    }
    for key in ("training.n_iters", "training.n_epochs"):
        found.pop(key)
    recipe = {
        "model.zero_init": True, "training.loss": "mean", "training.antithetic": False, "optim.warmup": 5000,
    }  # fmt: skip
    of_lsun = {"model.ema_rate": 0.9999, "optim.grad_clip": 1.0}
    assert {**recipe, **(of_lsun if upstreams["data"]["dataset"] == "LSUN" else {})} == found
