"""The arithmetic is upstream's: against values computed with upstream's own code, and against diffusers."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from support.program import ROOT

from configs import DiffusionConfig, load_config
from functions.objectives import noise_estimation_loss
from functions.samplers import ddpm_noisy, generalized
from functions.schedules import alphas_cumprod, betas, select_timesteps
from models.ema import EMA
from models.unet import UNet
from runners.diffusion import build_unet

GOLDEN = ROOT / "tests" / "golden"


LINEAR = DiffusionConfig("linear", 1e-4, 0.02, 1000)


NETWORKS = {
    "tiny": dict(ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), resamp_with_conv=True),
    "noconv": dict(ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), resamp_with_conv=False),
    "deep": dict(ch_mult=(1, 2, 2), num_res_blocks=2, attn_resolutions=(4, 8), resamp_with_conv=True),
}


def network(name: str, ch: int = 32) -> UNet:
    model = UNet(image_size=16, in_channels=3, out_ch=3, ch=ch, dropout=0.0, **NETWORKS[name])
    model.load_state_dict(ruled_weights({k: v.shape for k, v in model.state_dict().items()}))
    return model


def ruled_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    r = np.random.RandomState(0)
    weights = {}
    for key in sorted(shapes):
        w = r.standard_normal(shapes[key])
        if key.endswith("bias"):
            w = 0.05 * w
        elif w.ndim == 1:
            w = 1 + 0.1 * w
        else:
            w = w / np.sqrt(np.prod(w.shape[1:]))
        weights[key] = torch.from_numpy(w.astype(np.float32))
    return weights


def distance(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("name", ["linear", "quad", "const", "jsd", "sigmoid"])
def test_schedules_are_upstreams(name):
    golden = np.load(GOLDEN / "schedules.npz")
    ours = betas(DiffusionConfig(name, 1e-4, 0.02, 1000))
    np.testing.assert_allclose(ours, golden[f"{name}_betas"], rtol=1e-12)
    np.testing.assert_array_equal(alphas_cumprod(ours).numpy(), golden[f"{name}_alphas_cumprod"])


def test_timesteps_are_upstreams_to_the_bit():
    for skip_type, lists in json.loads((GOLDEN / "timesteps.json").read_text()).items():
        for S, timesteps in lists.items():
            assert select_timesteps(skip_type, int(S), 1000) == timesteps, (skip_type, S)


@pytest.mark.parametrize(
    "name, config",
    [("cifar10", "cifar10"), ("celeba", "celeba"), ("bedroom", "bedroom"), ("bedroom", "church")],
)
def test_parameters_have_upstreams_names_shapes_and_order(name, config):
    golden = json.loads((GOLDEN / f"state_dict_{name}.json").read_text())
    with torch.device("meta"):
        model = build_unet(load_config(f"{config}.yml"))
    ours = {key: list(value.shape) for key, value in model.named_parameters()}
    assert list(ours.items()) == list(golden.items())
    assert list(model.state_dict()) == list(golden)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_computes_what_upstreams_does(name):
    golden = np.load(GOLDEN / "unet.npz")
    x, t = torch.from_numpy(golden[f"{name}_x"]), torch.from_numpy(golden[f"{name}_t"])
    with torch.no_grad():
        y = network(name).eval()(x, t)
    assert distance(y, golden[f"{name}_y"]) < 1e-5


CASES = {
    "ddim_uniform10_eta0": ("generalized", "uniform", 10, 0.0),
    "ddim_quad10_eta05": ("generalized", "quad", 10, 0.5),
    "ddim_uniform30_eta1": ("generalized", "uniform", 30, 1.0),
    "ddim_quad30_eta1": ("generalized", "quad", 30, 1.0),
    "ddpm_noisy_uniform10": ("ddpm_noisy", "uniform", 10, None),
    "ddpm_noisy_quad20": ("ddpm_noisy", "quad", 20, None),
}


@pytest.mark.parametrize("case", CASES)
def test_samplers_are_upstreams(case):
    kind, skip_type, S, eta = CASES[case]
    golden = np.load(GOLDEN / "samplers.npz")
    x = torch.from_numpy(golden[f"{case}_x_T"])
    noise = iter(golden.get(f"{case}_noise", []))
    timesteps = select_timesteps(skip_type, S, 1000)
    arguments = (network("tiny").eval(), x, timesteps, alphas_cumprod(betas(LINEAR)))

    def randn_like(x):
        return torch.from_numpy(next(noise))

    if kind == "generalized":
        steps = list(generalized(*arguments, eta=eta, randn_like=randn_like))
    else:
        steps = list(ddpm_noisy(*arguments, randn_like=randn_like))

    assert [step.t for step in steps] == timesteps[::-1]
    assert next(noise, None) is None  # one array a step, the last included
    assert distance(steps[len(timesteps) // 2 - 1].x, golden[f"{case}_x_mid"]) < 1e-4
    assert distance(steps[-1].x, golden[f"{case}_x"]) < 1e-4
    x0 = torch.stack([step.x0 for step in steps[:: max(1, len(timesteps) // 5)]])
    assert distance(x0, golden[f"{case}_x0"]) < (5e-4 if kind == "ddpm_noisy" else 1e-4)


def test_an_optimisation_step_is_upstreams():
    golden = np.load(GOLDEN / "training.npz")
    model = network("tiny", ch=64).train()
    start = {name: param.detach().double().clone() for name, param in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.9, 0.999), eps=1e-8)
    ema = EMA(model, 0.9)
    a = alphas_cumprod(betas(LINEAR))
    for k in range(4):
        x, eps, t = (torch.from_numpy(golden[name][k]) for name in "xet")
        loss = noise_estimation_loss(model, x, t, eps, a).mean()
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        assert loss.item() == pytest.approx(golden["loss"][k], rel=1e-4)
        assert grad_norm.item() == pytest.approx(golden["grad_norm"][k], rel=1e-4)
    params, names = dict(model.named_parameters()), [str(name) for name in golden["names"]]
    assert (
        distance([(params[n].double() - start[n]).norm().item() for n in names], golden["param_moved"]) < 1e-4
    )
    assert (
        distance([(ema.shadow[n].double() - start[n]).norm().item() for n in names], golden["ema_moved"])
        < 1e-4
    )


def test_the_average_is_swapped_in_and_out():
    model = network("tiny")
    ema = EMA(model, 0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for param in model.parameters():
            param.add_(1)
    ema.update(model)
    with ema.average_weights(model):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, before[name] + 0.5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name] + 1)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_diffusers_takes_the_same_steps(eta):
    """DDIMScheduler, for the same model outputs and the same noise."""
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False,
        set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading",
    )  # fmt: skip
    scheduler.set_timesteps(20)
    r = torch.Generator().manual_seed(0)
    x_T, *draws = torch.randn(41, 2, 3, 8, 8, generator=r)
    outputs, noise = dict(zip(range(0, 1000, 50), draws[:20], strict=True)), draws[20:]
    remaining = iter(noise)
    steps = generalized(
        lambda x, t: outputs[int(t[0])] + 0.1 * x, x_T, range(0, 1000, 50), alphas_cumprod(betas(LINEAR)),
        eta=eta, randn_like=lambda x: next(remaining),
    )  # fmt: skip
    x = x_T
    for step, t, z in zip(steps, scheduler.timesteps, noise, strict=True):
        assert step.t == t
        # At t = 0 theirs, like ours, adds noise of no variance.
        theirs = scheduler.step(outputs[int(t)] + 0.1 * x, t, x, eta=eta, variance_noise=z if eta else None)
        assert distance(step.x0, theirs.pred_original_sample) < 1e-5
        x = theirs.prev_sample
        assert distance(step.x, x) < 1e-5
