"""Sampling through main.py: which files, which pixels, and what continues, extends or is refused."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import MAIN, main, refuses, small_config
from PIL import Image

from configs import load_config
from functions.disk import images
from functions.noise import initial_noise, slerp
from runners.diffusion import build_unet


def sample(run, exp, folder, *arguments, mode="--fid", code=0, **options):
    command = (
        "--config",
        run.config,
        "--exp",
        exp,
        "--ckpt",
        run.ckpt,
        "--sample",
        mode,
        "-i",
        folder,
        *arguments,
    )
    return main(*command, code=code, **options)


def pixels(folder, name) -> np.ndarray:
    return np.asarray(Image.open(folder / name)).astype(int)


def pngs(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def ten(run, tmp_path_factory):
    """Ten images in batches of 4, η 1, ten steps: the folder that others are held against."""
    exp = tmp_path_factory.mktemp("ten")
    process = sample(run, exp, "ten", "--num_samples", 10, "--timesteps", 10, "--eta", 1, fresh=True)
    return exp, exp / "image_samples" / "ten", process


def ddim(run, index, timesteps, eta, seed=1234, x_T=None):
    """Image `index` by the paper's equation 12 in float64, with the noise that the contract gives it. x on [-1, 1]."""
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


def test_exactly_n_images_a_manifest_and_a_sheet_beside_the_folder(run, ten):
    _, folder, process = ten
    assert {p.name for p in folder.iterdir()} == {f"{i}.png" for i in range(10)} | {"manifest.json"}
    assert {p.name for p in folder.parent.iterdir()} == {"ten", "ten.png", "ten.lock"}
    assert pixels(folder, "0.png").shape == (8, 8)
    assert (
        "10 steps asked, 10 evaluated, t from 900 to 0; 10 images to make in batches of 4" in process.stderr
    )
    assert "0 already there; float32 on cpu" in process.stderr
    assert str(folder) in process.stdout and str(folder.with_name("ten.png")) in process.stdout
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_samples"] == 10 and manifest["parts"][0]["batch_size"] == 4
    assert manifest["decides"]["timesteps"] == list(range(0, 1000, 100)) and manifest["decides"]["eta"] == 1


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


def test_a_continued_folder_is_byte_identical(run, ten, tmp_path):
    folder = tmp_path / "image_samples" / "ten"
    shutil.copytree(ten[1], folder)
    for i in (0, 5, 6, 9):
        (folder / f"{i}.png").unlink()
    process = sample(run, tmp_path, "ten", "--num_samples", 10, "--timesteps", 10, "--eta", 1)
    assert "4 images to make in batches of 4, 6 already there" in process.stderr
    assert pngs(folder) == pngs(ten[1])


def test_a_killed_folder_continues_to_what_it_would_have_been(run, ten, tmp_path):
    exp = tmp_path / "killed"
    folder = exp / "image_samples" / "f"
    arguments = ("--num_samples", 60, "--timesteps", 50, "--eta", 1)
    command = (
        "--config",
        run.config,
        "--exp",
        exp,
        "--ckpt",
        run.ckpt,
        "--sample",
        "--fid",
        "-i",
        "f",
        *arguments,
    )
    process = subprocess.Popen([sys.executable, MAIN, *map(str, command)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (folder / "5.png").exists() and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 5 < len(pngs(folder)) < 60
    main(*command)
    sample(run, tmp_path, "whole", *arguments)
    assert pngs(folder) == pngs(tmp_path / "image_samples" / "whole")
    assert {p.suffix for p in folder.iterdir()} == {".png", ".json"}


def test_an_extended_folder_is_byte_identical(run, ten, tmp_path):
    for n in (5, 10):
        sample(run, tmp_path, "f", "--num_samples", n, "--timesteps", 10, "--eta", 1)
    assert pngs(tmp_path / "image_samples" / "f") == pngs(ten[1])


def test_batches_of_1_3_and_8_give_the_same_images_to_one_grey_level(run, ten, tmp_path):
    for batch_size in (1, 3, 8):
        arguments = ("--num_samples", 10, "--timesteps", 10, "--eta", 1, "--batch_size", batch_size)
        sample(run, tmp_path, f"b{batch_size}", *arguments)
        for i in range(10):
            difference = pixels(tmp_path / "image_samples" / f"b{batch_size}", f"{i}.png") - pixels(
                ten[1], f"{i}.png"
            )
            assert np.abs(difference).max() <= 1


def test_x_T_is_the_contracts_whatever_the_batch():
    whole = initial_noise(7, range(6), (3, 4, 4))
    assert torch.equal(initial_noise(7, [4, 2], (3, 4, 4)), whole[[4, 2]])
    expected = np.random.default_rng([7, 5]).standard_normal((3, 4, 4), dtype=np.float32)
    assert np.array_equal(whole[5].numpy(), expected)


def test_the_real_cifar10_network_samples_on_a_cpu(tmp_path):
    torch.manual_seed(0)
    torch.save(build_unet(load_config("cifar10.yml")).state_dict(), tmp_path / "w.pth")
    command = (
        "--config",
        "cifar10.yml",
        "--exp",
        tmp_path,
        "--ckpt",
        tmp_path / "w.pth",
        "--sample",
        "--fid",
    )
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


def test_two_processes_do_not_share_a_folder(run, tmp_path):
    folder = tmp_path / "image_samples" / "f"
    arguments = (
        "--config",
        run.config,
        "--exp",
        tmp_path,
        "--ckpt",
        run.ckpt,
        "--sample",
        "--fid",
        "-i",
        "f",
    )
    command = (*arguments, "--num_samples", 100000, "--timesteps", 2)
    process = subprocess.Popen([sys.executable, MAIN, *map(str, command)], stderr=subprocess.DEVNULL)
    try:
        while not (folder / "0.png").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        refuses(*command, says=("in use by another process",), tree=tmp_path)
    finally:
        process.kill()
        process.wait()


def test_the_same_weights_in_another_format_continue_the_folder(run, ten, tmp_path):
    """Upstream's list, with and without `module.`, and a bare state dict: the images are the same run's."""
    own = torch.load(run.ckpt, weights_only=True)
    prefixed = {f"module.{k}": v for k, v in own["model"].items()}
    contents = {
        "list.pth": [prefixed, own["optimizer"], 1, 4, own["ema"]],
        "no_ema.pth": [{f"module.{k}": v for k, v in own["ema"].items()}, own["optimizer"], 1, 4],
        "bare.pth": own["ema"],
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
        command = (
            "--config",
            run.config,
            "--exp",
            ten[0],
            "--ckpt",
            tmp_path / name,
            "--sample",
            "--fid",
            "-i",
            "ten",
        )
        process = main(*command, "--num_samples", 10, "--timesteps", 10, "--eta", 1)
        assert "0 images to make in batches of 4, 10 already there" in process.stderr


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--eta", 0.5], "eta is 1.0 there and 0.5 here"),
        (["--seed", 3], "seed is 1234 there and 3 here"),
        (["--timesteps", 20], "timesteps is 10 values from 0 to 900 there and 20 values from 0 to 950 here"),
        (["--num_samples", 9], "made for 10 images, and 9 are asked"),
        (["--weights", "raw"], "weights is"),
        (["--sample_type", "ddpm_noisy"], "sample_type is generalized there and ddpm_noisy here"),
    ],
)
def test_another_run_is_refused_by_name(run, ten, arguments, says):
    base = ["--num_samples", 10, "--timesteps", 10, "--eta", 1]
    command = (
        "--config",
        run.config,
        "--exp",
        ten[0],
        "--ckpt",
        run.ckpt,
        "--sample",
        "--fid",
        "-i",
        "ten",
        *base,
        *arguments,
    )
    refuses(*command, says=(says, "-i"), tree=ten[0], fresh=arguments[0] == "--eta")


def test_images_without_a_manifest_are_refused(run, tmp_path):
    folder = tmp_path / "image_samples" / "old"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(b"somebody's")
    command = (
        "--config",
        run.config,
        "--exp",
        tmp_path,
        "--ckpt",
        run.ckpt,
        "--sample",
        "--sequence",
        "--ni",
        "-i",
        "old",
    )
    refuses(*command, "--timesteps", 5, says=("holds images and no manifest.json", "-i"), tree=tmp_path)
    (folder / "manifest.json").write_text("{")
    refuses(*command, "--timesteps", 5, says=("manifest.json is damaged",), tree=tmp_path)


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


def test_slerp_keeps_the_norm_of_a_circle():
    z1, z2 = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    torch.testing.assert_close(
        slerp(z1, z2, 1 / 3), 3 * torch.tensor([np.sqrt(3) / 2, 0.5], dtype=torch.float32)
    )


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
        command = (
            "--config",
            config,
            "--exp",
            tmp_path,
            "--doc",
            "d",
            "--sample",
            "--fid",
            "-i",
            k,
            "--num_samples",
            1,
        )
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
    command = (
        "--config",
        config,
        "--exp",
        tmp_path,
        "--ckpt",
        tmp_path / "b.pth",
        "--sample",
        "--fid",
        "--num_samples",
        3,
    )
    assert "50 steps asked, 50 evaluated, t from 49 to 0" in main(*command).stderr


def test_cifar10_with_uniform_steps_mentions_the_papers_spacing(tmp_path):
    config = small_config(tmp_path / "c.yml", data__dataset="CIFAR10")
    torch.save(build_unet(load_config(str(config))).state_dict(), tmp_path / "w.pth")
    command = (
        "--config",
        config,
        "--exp",
        tmp_path,
        "--ckpt",
        tmp_path / "w.pth",
        "--sample",
        "--fid",
        "--num_samples",
        1,
    )
    assert "quad" in main(*command, "--timesteps", 2).stderr
    assert "quad" not in main(*command, "--timesteps", 2, "--skip_type", "quad", "-i", "q").stderr


def test_weights_that_give_nan_write_no_image(tmp_path):
    config = small_config(tmp_path / "c.yml")
    weights = build_unet(load_config(str(config))).state_dict()
    weights["conv_in.bias"][0] = float("nan")
    torch.save(weights, tmp_path / "w.pth")
    command = (
        "--config",
        config,
        "--exp",
        tmp_path,
        "--ckpt",
        tmp_path / "w.pth",
        "--sample",
        "--fid",
        "--num_samples",
        2,
    )
    process = main(*command, "--timesteps", 2, code=1)
    assert "not finite" in process.stderr and "Traceback" not in process.stderr
    assert not pngs(tmp_path / "image_samples" / "images")


def test_a_full_disk_is_a_sentence_and_leaves_whole_files(run, tmp_path):
    """A file-size limit of 4 kB stands in for a full disk: the manifest of 1,000 steps does not fit."""
    command = [
        "--config",
        run.config,
        "--exp",
        tmp_path,
        "--ckpt",
        run.ckpt,
        "--sample",
        "--fid",
        "--num_samples",
        "1",
    ]
    limited = f"trap '' XFSZ; ulimit -f 4; exec {sys.executable} {MAIN} {' '.join(map(str, command))}"
    process = subprocess.run(
        ["bash", "-c", limited], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert process.returncode == 1
    assert "File too large" in process.stderr and "Traceback" not in process.stderr
    assert not [p for p in (tmp_path / "image_samples" / "images").rglob("*") if p.is_file()]


def test_bytes_round_half_up_as_torchvision_does(tmp_path):
    from torchvision.utils import save_image

    x = torch.linspace(-0.01, 1.01, 3 * 32 * 32).reshape(3, 32, 32)
    save_image(x, tmp_path / "theirs.png")
    images.write_png(tmp_path / "ours.png", images.to_uint8(x))
    assert np.array_equal(pixels(tmp_path, "ours.png"), pixels(tmp_path, "theirs.png"))
