"""The pixels are the paper's equations: --fid, --interpolation and --sequence, for each kind of weights."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import pixels, pngs, sample
from support.program import main, sampling, small_config

from configs import load_config
from functions.disk import images
from runners.diffusion import Diffusion, build_unet


def ddim(run, index, timesteps, eta, seed=1234, x_T=None):
    """Image `index` on [-1, 1] by the paper's equation 12 in float64, with the noise of the contract."""
    model = build_unet(load_config(str(run.config)))
    model.load_state_dict(torch.load(run.ckpt, weights_only=True)["ema"])
    model.eval()
    betas = np.linspace(1e-4, 0.002, 1000)
    a_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    x = (
        np.random.default_rng([seed, index]).standard_normal((1, 8, 8), dtype=np.float32)
        if x_T is None
        else x_T
    )
    noise = np.random.default_rng([seed, index, 1])
    x = x.astype(np.float64)
    for k in reversed(range(len(timesteps))):
        t, before = timesteps[k], timesteps[k - 1] if k else -1
        a, b = a_bar[t + 1], a_bar[before + 1]
        with torch.no_grad():
            eps = model(torch.tensor(x, dtype=torch.float32)[None], torch.tensor([t]))[0].double().numpy()
        sigma = eta * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
        x = np.sqrt(b) * (x - np.sqrt(1 - a) * eps) / np.sqrt(a) + np.sqrt(1 - b - sigma**2) * eps
        x = x + sigma * noise.standard_normal((1, 8, 8), dtype=np.float32)
    return x


def to_bytes(x) -> np.ndarray:
    return np.floor(np.clip((x[0] + 1) / 2, 0, 1) * 255 + 0.5).astype(int)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_pixels_are_the_papers_equation(run, ten, tmp_path, eta):
    folder = ten[1]
    if eta == 0:
        sample(run, tmp_path, "f", "--num_samples", 10, "--timesteps", 10)
        folder = tmp_path / "image_samples" / "f"
    for index in (0, 9):
        expected = to_bytes(ddim(run, index, list(range(0, 1000, 100)), eta))
        assert ((expected > 0) & (expected < 255)).mean() > 0.3  # clipping would hide differences
        assert np.abs(pixels(folder, f"{index}.png") - expected).max() <= 1


def test_batches_of_1_3_and_8_give_the_same_images_to_one_grey_level(run, ten, tmp_path):
    for batch_size in (1, 3, 8):
        arguments = ("--num_samples", 10, "--timesteps", 10, "--eta", 1, "--batch_size", batch_size)
        sample(run, tmp_path, f"b{batch_size}", *arguments)
        for i in range(10):
            difference = pixels(tmp_path / "image_samples" / f"b{batch_size}", f"{i}.png") - pixels(
                ten[1], f"{i}.png"
            )
            assert np.abs(difference).max() <= 1


def test_the_real_cifar10_network_samples_on_a_cpu(tmp_path):
    torch.manual_seed(0)
    torch.save(build_unet(load_config("cifar10.yml")).state_dict(), tmp_path / "w.pth")
    command = sampling("cifar10.yml", tmp_path / "w.pth", tmp_path)
    main(*command, "--num_samples", 2, "--timesteps", 3, "--batch_size", 2, "--device", "cpu")
    images = [pixels(tmp_path / "image_samples" / "images", f"{i}.png") for i in range(2)]
    assert all(image.shape == (32, 32, 3) for image in images) and not np.array_equal(*images)


def test_a_config_whose_data_cannot_be_read_yet_samples(tmp_path):
    with torch.device("meta"):
        network = build_unet(load_config("celeba.yml"))
    weights = {name: torch.full(value.shape, 0.01) for name, value in network.state_dict().items()}
    torch.save(weights, tmp_path / "w.pth")
    command = ("--config", "celeba.yml", "--exp", tmp_path, "--ckpt", tmp_path / "w.pth", "--sample", "--fid")
    main(*command, "--num_samples", 1, "--timesteps", 1, "--batch_size", 1)
    assert pixels(tmp_path / "image_samples" / "images", "0.png").shape == (64, 64, 3)


def test_interpolation_runs_from_image_0_to_image_1(run, ten, tmp_path):
    """At η = 0 an image is its x_T: the ends are those of --fid, and the middle is the arc's middle."""
    sample(run, tmp_path, "f", "--num_samples", 2, "--timesteps", 10)
    sample(run, tmp_path, "path", "--timesteps", 10, mode="--interpolation", fresh=True)
    folder, fid = tmp_path / "image_samples" / "path", tmp_path / "image_samples" / "f"
    assert {p.name for p in folder.glob("*.png")} == {f"{k}.png" for k in range(11)}
    assert folder.with_name("path.png").exists()
    assert np.abs(pixels(folder, "0.png") - pixels(fid, "0.png")).max() <= 1
    assert np.abs(pixels(folder, "10.png") - pixels(fid, "1.png")).max() <= 1
    z1, z2 = (
        np.random.default_rng([1234, i]).standard_normal((1, 8, 8), dtype=np.float32).astype(float)
        for i in (0, 1)
    )
    theta = np.arccos((z1 * z2).sum() / np.sqrt((z1**2).sum() * (z2**2).sum()))
    middle = (z1 + z2) * np.sin(theta / 2) / np.sin(theta)
    expected = to_bytes(ddim(run, 5, list(range(0, 1000, 100)), 0.0, x_T=middle))
    assert np.abs(pixels(folder, "5.png") - expected).max() <= 1


def test_sequence_writes_the_predicted_x0_of_eight_chains_at_every_step(run, tmp_path):
    """Thirty quadratic steps, of which one repeats: --fid drops it, upstream's file numbers keep it."""
    steps = ("--timesteps", 30, "--skip_type", "quad")
    process = sample(run, tmp_path, "f", "--num_samples", 8, *steps)
    assert "30 steps asked, 29 evaluated" in process.stderr
    sample(run, tmp_path, "chain", *steps, mode="--sequence", fresh=True)
    folder, fid = tmp_path / "image_samples" / "chain", tmp_path / "image_samples" / "f"
    assert {p.name for p in folder.glob("*.png")} == {f"{j}_{i}.png" for j in range(8) for i in range(30)}
    for j in range(8):  # at the last step x is x0
        assert np.abs(pixels(folder, f"{j}_29.png") - pixels(fid, f"{j}.png")).max() <= 1
    assert any(np.abs(pixels(folder, f"{j}_0.png") - pixels(fid, f"{j}.png")).max() > 1 for j in range(8))
    sheet = Image.open(folder.with_name("chain.png"))
    assert sheet.width > sheet.height  # ten columns, eight rows
    before = pngs(folder)
    (folder / "3_7.png").unlink()
    process = sample(run, tmp_path, "chain", "--timesteps", 30, "--skip_type", "quadratic", mode="--sequence")
    assert "1 images to make" in process.stderr
    assert pngs(folder) == before


def test_ddpm_noisy_clips_and_says_that_eta_has_no_effect(run, tmp_path):
    process = sample(
        run, tmp_path, "f", "--num_samples", 2, "--timesteps", 10, "--sample_type", "ddpm_noisy", "--eta", 0.5
    )
    assert "--eta has no effect" in process.stderr
    process = sample(run, tmp_path, "f", "--num_samples", 2, "--timesteps", 10, "--sample_type", "ddpm_noisy")
    assert "0 images to make" in process.stderr and "--eta" not in process.stderr


def test_raw_weights_and_a_snapshot_by_its_number(run, tmp_path):
    """ckpt_id names the snapshot, --weights which of its two sets; all of them are different weights."""
    shutil.copytree(run.exp / "logs", tmp_path / "logs")
    hashes = set()
    for k, (ckpt_id, weights) in enumerate([(1, "ema"), (1, "raw"), (2, "ema"), (None, "ema")]):
        config = small_config(tmp_path / "c.yml", sampling__ckpt_id=ckpt_id)
        command = ("--config", config, "--exp", tmp_path, "--doc d --sample --fid -i", k, "--num_samples", 1)
        process = main(*command, "--timesteps", 1, "--weights", weights)
        name = "ckpt.pth" if ckpt_id is None else f"ckpt_{ckpt_id}.pth"
        assert re.search(rf"weights: .*{name} \({weights}, step \d\)", process.stderr)
        hashes.add(
            json.loads((tmp_path / "image_samples" / str(k) / "manifest.json").read_text())["decides"][
                "weights"
            ]
        )
    assert len(hashes) == 4


def test_a_bayesian_network_loads_and_samples(tmp_path):
    config = small_config(tmp_path / "c.yml", model__type="bayesian", diffusion__num_diffusion_timesteps=50)
    model = build_unet(load_config(str(config)))
    assert next(iter(model.state_dict())) == "logvar" and model.logvar.shape == (50,)
    torch.save(model.state_dict(), tmp_path / "b.pth")
    command = sampling(config, tmp_path / "b.pth", tmp_path, "--num_samples", 3)
    assert "50 steps asked, 50 evaluated, t from 49 to 0" in main(*command).stderr


def test_cifar10_with_uniform_steps_mentions_the_papers_spacing(tmp_path):
    config = small_config(tmp_path / "c.yml", data__dataset="CIFAR10")
    torch.save(build_unet(load_config(str(config))).state_dict(), tmp_path / "w.pth")
    command = sampling(config, tmp_path / "w.pth", tmp_path, "--num_samples", 1)
    assert "quad" in main(*command, "--timesteps", 2).stderr
    assert "quad" not in main(*command, "--timesteps", 2, "--skip_type", "quad", "-i", "q").stderr


def test_weights_that_give_nan_write_no_image(tmp_path):
    config = small_config(tmp_path / "c.yml")
    weights = build_unet(load_config(str(config))).state_dict()
    weights["conv_in.bias"][0] = 3e38  # a number, as loading asks for, until a norm squares it
    torch.save(weights, tmp_path / "w.pth")
    command = sampling(config, tmp_path / "w.pth", tmp_path, "--num_samples", 2)
    process = main(*command, "--timesteps", 2, code=1)
    assert "not finite" in process.stderr and "Traceback" not in process.stderr
    assert not pngs(tmp_path / "image_samples" / "images")


def test_bytes_round_half_up_as_torchvision_does(tmp_path):
    from torchvision.utils import save_image

    x = torch.linspace(-0.01, 1.01, 3 * 32 * 32).reshape(3, 32, 32)
    save_image(x, tmp_path / "theirs.png")
    images.write_png(tmp_path / "ours.png", images.to_uint8(x))
    assert np.array_equal(pixels(tmp_path, "ours.png"), pixels(tmp_path, "theirs.png"))


def test_sampling_in_python(pipe):
    diffusion = Diffusion.from_pretrained(str(pipe), device="cpu")
    some = dict(diffusion.sample([5, 2], timesteps=4, eta=1.0, seed=7, batch_size=3))
    all_ = dict(diffusion.sample(6, timesteps=4, eta=1.0, seed=7, batch_size=3))
    assert list(some) == [2, 5] and list(all_) == list(range(6))
    assert all(torch.equal(some[i], all_[i]) and some[i].dtype == torch.uint8 for i in some)
    assert not torch.equal(all_[2], dict(diffusion.sample(3, timesteps=4, eta=0.0, seed=7))[2])
    wrong = dict(timesteps=1001, eta=1.5, seed=-1, skip_type="cubic", sample_type="ddim")
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name} is .*must be"):
            diffusion.sample(1, **{name: value})
