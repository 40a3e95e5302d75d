"""Tasks that read images or latents: what they compute, and how their folders continue."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.images import pixels, pngs, sample
from support.layouts import random_images
from support.processes import free_port, started, wait_until
from support.program import MAIN, ROOT, main, refuses, sampling, two_ranks
from support.warm import WARM

from configs import load_config
from datasets.digits import read
from functions.samplers import last
from runners.diffusion import Diffusion


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    for i, image in enumerate(random_images(6, 8, 8)):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def reconstructed(run, tmp_path_factory):
    exp = tmp_path_factory.mktemp("reconstructed")
    arguments = ("--num_samples", 10, "--timesteps", 5, 10)
    return exp, sample(run, exp, "r", *arguments, mode="--reconstruction").stdout


def test_reconstruction_is_encode_and_decode(run, reconstructed):
    """By the library's own calls: its pictures, and its table's number up to the rounding to 8 bits."""
    exp, said = reconstructed
    config = load_config(run.config)
    diffusion = Diffusion.from_pretrained(str(run.ckpt), config, device="cpu")
    images = read(config.data, None, train=False)[:10]
    table = json.loads((exp / "image_samples" / "r" / "table.json").read_text())
    for cell, S in zip(table["cells"], (5, 10), strict=True):
        sampling = diffusion.sampling(timesteps=S)
        x = diffusion.from_images(images)
        latents = last(diffusion.encode(x, sampling)).x
        again = last(diffusion.denoise(latents, sampling)).x
        folder = exp / "image_samples" / "r" / f"S{S}_eta0_seed1234"
        for i in range(10):
            assert np.abs(pixels(folder, f"{i}.png") - diffusion.to_images(again)[i, 0].numpy()).max() <= 1
            assert (pixels(folder, f"{i}_original.png") == images[i, 0].numpy()).all()
            latent = diffusion.to_images(latents)[i, 0].numpy()
            assert np.abs(pixels(folder, f"{i}_latent.png") - latent).max() <= 1
        expected = ((again.clamp(-1, 1) - x) / 2).square().mean().item()
        assert abs(cell["numbers"]["mse"] - expected) < 2e-5 + 0.01 * expected
        assert cell["evaluations"] == 2 * S
    assert "## mse" in said and "--inversion to" in said


def test_reconstruction_killed_extended_and_by_two_ranks_is_the_same(run, reconstructed, tmp_path):
    whole = reconstructed[0] / "image_samples" / "r" / "S10_eta0_seed1234"
    command = sampling(run.config, run.ckpt, tmp_path, "--timesteps", 10, mode="--reconstruction")
    with started([WARM, MAIN, *map(str, command), "--num_samples", "120", "-i", "k"]) as process:
        wait_until((tmp_path / "image_samples" / "k" / "5.png").exists, process, pause=0.005)
    assert 5 < len(pngs(tmp_path / "image_samples" / "k")) < 120
    main(*command, "--num_samples", 5, "-i", "e")
    main(*command, "--num_samples", 10, "-i", "e")
    assert pngs(tmp_path / "image_samples" / "e") == pngs(whole)
    two_ranks(*command, "--num_samples", 10, "-i", "two")
    assert pngs(tmp_path / "image_samples" / "two") == pngs(whole)
    said = main(*command, "--num_samples", 120, "-i", "k").stdout
    killed = pngs(tmp_path / "image_samples" / "k")
    assert killed.items() >= {f"{i}.png": (whole / f"{i}.png").read_bytes() for i in range(10)}.items()
    assert len(killed) == 120 + 2 * 16 and "mse" in said


def test_latents_there_and_back(run, folder_of_images, tmp_path):
    """--encode and --decode by one τ are --reconstruction; the file holds x_T; another folder is refused."""
    exp, folder = tmp_path, tmp_path / "image_samples"
    of = ("--config", run.config, "--ckpt", run.ckpt, "--exp", exp, "--timesteps", 10)
    said = main(*of, "--encode", folder_of_images, "-i", "e").stdout
    assert str(folder / "e.npz") in said
    content = np.load(folder / "e.npz")
    diffusion = Diffusion.from_pretrained(str(run.ckpt), load_config(run.config), device="cpu")
    images = torch.stack([torch.from_numpy(pixels(folder_of_images, f"{i}.png")) for i in range(6)])[:, None]
    latents = last(diffusion.encode(diffusion.from_images(images), diffusion.sampling(10))).x
    assert np.abs(content["latents"] - latents.numpy()).max() < 1e-4
    assert json.loads(str(content["manifest"]))["decides"]["inversion"] == "to"

    main(*of, "--decode", folder / "e.npz", "-i", "d")
    main(*of, "--sample", "--reconstruction", "--reference", folder_of_images, "-i", "r")
    for i in range(6):
        assert (folder / "d" / f"{i}.png").read_bytes() == (folder / "r" / f"{i}.png").read_bytes()
    (folder / "e" / "3.npy").unlink()
    (folder / "e.npz").unlink()
    assert "1 files to make" in main(*of, "--encode", folder_of_images, "-i", "e").stderr
    assert (np.load(folder / "e.npz")["latents"] == content["latents"]).all()

    differs = {
        "images is": ("--encode", run.exp / "other", "-i", "e"),
        "inversion is to": ("--encode", folder_of_images, "--inversion", "from", "-i", "e"),
        "latents is": ("--decode", folder / "other.npz", "-i", "d"),
    }
    (run.exp / "other").mkdir(exist_ok=True)
    Image.fromarray(random_images(8, 8, seed=9)).save(run.exp / "other" / "0.png")
    np.savez(folder / "other.npz", latents=np.zeros((6, 1, 8, 8), np.float32))
    for said, arguments in differs.items():
        refuses(*of, *arguments, says=[said], tree=folder)
    assert "encoded to t = 900" in main(*of[:-1], 20, "--decode", folder / "e.npz", "-i", "d20").stderr


def test_what_is_not_there_is_refused(run, folder_of_images, tmp_path):
    of = ("--config", run.config, "--ckpt", run.ckpt, "--exp", tmp_path)
    np.savez(tmp_path / "wrong.npz", latents=np.zeros((2, 3, 8, 8)))
    (tmp_path / "text.npz").write_text("text")
    for arguments, said in (
        (("--encode", "nowhere"), "nowhere is neither train, nor test, nor a folder of images"),
        (("--encode", folder_of_images, "--num_samples", 7), "--num_samples is 7;"),
        (("--decode", tmp_path / "none.npz"), "does not exist"),
        (("--decode", tmp_path / "text.npz"), "not an .npz file of latents"),
        (("--decode", tmp_path / "wrong.npz"), "this network takes n of (1, 8, 8)"),
        (("--sample", "--fid", "--inversion", "to"), "--inversion goes with"),
        (("--encode", "test", "--eta", 0, 1), "make a grid"),
    ):
        refuses(*of, *arguments, says=[said], tree=tmp_path)


def test_consistency_is_the_distance_to_the_largest_S(run, tmp_path):
    """The images are --fid's; the distances, those of their files; the finest is at 0 from itself."""
    how = ("--timesteps", 4, 8, 20, "--sample_type", "generalized", "heun", "--skip_type", "uniform")
    said = sample(run, tmp_path, "c", *how, mode="--consistency").stdout
    sample(run, tmp_path, "f", "--num_samples", 8, "--timesteps", 8)
    folder = tmp_path / "image_samples" / "c"
    assert pngs(folder / "S8_eta0_seed1234") == pngs(tmp_path / "image_samples" / "f")
    finest = [pixels(folder / "S20_eta0_seed1234", f"{i}.png") for i in range(8)]
    cells = json.loads((folder / "table.json").read_text())["cells"]
    assert len(cells) == 6
    for cell in cells:
        name = cell["folder"].split("/")[-1]
        theirs = [pixels(folder / name, f"{i}.png") for i in range(8)]
        expected = np.mean([((a - b) ** 2).mean() ** 0.5 for a, b in zip(theirs, finest, strict=True)])
        assert abs(cell["numbers"]["distance"] - expected) < 1e-9
        assert (expected == 0) == (name == "S20_eta0_seed1234")
    assert "## distance" in said and folder.with_name("c.png").exists()


def test_restoration_keeps_what_is_known(run, folder_of_images, tmp_path):
    """By the library's own calls, with a mask and travels; it continues, and another mask is refused."""
    mask = np.full((8, 8), 255, np.uint8)
    mask[2:6, 1:5] = 0
    for name, content in (("m", mask), ("other", mask.T), ("white", mask | 255)):
        Image.fromarray(content).save(tmp_path / f"{name}.png")
    how = ("--restoration", "inpainting", "--input", folder_of_images, "--timesteps", 10, "--eta", 0.85)
    of = ("--config", run.config, "--ckpt", run.ckpt, "--exp", tmp_path, "--sample", *how, "-i", "p")
    said = main(*of, "--mask", tmp_path / "m.png", "--travel", 3, 2).stdout
    folder = tmp_path / "image_samples" / "p"
    errors = []
    for i in range(6):
        found, truth = pixels(folder, f"{i}.png"), pixels(folder_of_images, f"{i}.png")
        assert (found[mask == 255] == truth[mask == 255]).all()
        assert (pixels(folder, f"{i}_original.png") == truth).all()
        errors.append((((found - truth) / 255)[mask == 0] ** 2).mean())
    row = next(line for line in said.splitlines() if line.startswith("mse"))
    assert abs(float(row.split()[1]) - np.mean(errors)) < 1e-3 * np.mean(errors) and row.split()[-1] == "19"
    before = pngs(folder)
    (folder / "4.png").unlink()
    main(*of, "--mask", tmp_path / "m.png", "--travel", 3, 2)
    assert pngs(folder) == before
    for arguments, said in (
        (("--mask", tmp_path / "other.png", "--travel", 3, 2), "mask is"),
        (("--mask", tmp_path / "white.png"), "is all white"),
        (("--mask", tmp_path / "none.png"), "none.png does not exist"),
        (("--travel", 0, 2), "both numbers must be at least 1"),
        (("--sample_type", "heun", "--eta", 0), "--restoration takes --sample_type generalized"),
        (("--strength", 0.3), "--strength goes with --sample --edit"),
        (("--restoration", "colorization"), "no colour to find"),
        (("--restoration", "denoising"), "needs --sigma_y above 0"),
        (("--restoration", "inpaiting"), "did you mean 'inpainting'?"),
    ):
        refuses(*of, *arguments, says=[said], tree=tmp_path)


def test_a_grid_between_four_ends(run, folder_of_images, tmp_path):
    """Pictures by their encodings and latents by their numbers; corners are the ends."""
    of = ("--config", run.config, "--ckpt", run.ckpt, "--exp", tmp_path, "--timesteps", 10, "--sample")
    ends = (folder_of_images / "0.png", 3, folder_of_images / "2.png", 7)
    grid = (*of, "--interpolation", "--between", *ends, "--points", 3)
    plan = main(*grid, "--plan").stdout
    assert "NFE), which end at a clean image, after 20 that encode pictures" in plan
    assert f"{3 * 4 * 10 + 20} evaluations of the network, in whole batches of 4" in plan
    main(*grid)
    diffusion = Diffusion.from_pretrained(str(run.ckpt), load_config(run.config), device="cpu")
    sampling, numbers = diffusion.sampling(10), diffusion.latents([3, 7])
    given = torch.stack([torch.from_numpy(pixels(folder_of_images, f"{i}.png")) for i in (0, 2)])[:, None]
    encoded = last(diffusion.encode(diffusion.from_images(given), sampling)).x
    a, b, c, d = (z.double().numpy() for z in (encoded[0], numbers[0], encoded[1], numbers[1]))

    def middle(z, w):
        theta = np.arccos((z * w).sum() / np.sqrt((z**2).sum() * (w**2).sum()))
        return (z + w) * np.sin(theta / 2) / np.sin(theta)

    top, bottom = middle(a, b), middle(c, d)
    rows = [a, top, b, middle(a, c), middle(top, bottom), middle(b, d), c, bottom, d]
    x_T = torch.from_numpy(np.stack(rows)).float()
    expected = diffusion.to_images(last(diffusion.denoise(x_T, sampling)).x)[:, 0].numpy().astype(int)
    folder = tmp_path / "image_samples" / "images"
    assert len(pngs(folder)) == 9
    for k in range(9):
        assert np.abs(pixels(folder, f"{k}.png") - expected[k]).max() <= 1
    for arguments, said in (
        (("--between", 1, 2, 3), "names 3 ends"),
        (("--points", 1), "--points is 1"),
        (("--between", 0, "no.png"), "no.png is neither"),
    ):
        refuses(*of, "--interpolation", *arguments, "-i", "x", says=[said], tree=tmp_path)


def test_edit_begins_where_its_strength_says(run, folder_of_images, tmp_path):
    of = ("--config", run.config, "--ckpt", run.ckpt, "--exp", tmp_path, "--input", folder_of_images)
    said = main(*of, "--sample", "--edit", "--timesteps", 10, "--strength", 0.45).stderr
    assert "10 steps asked, 5 evaluated, t from 400 to 0" in said
    diffusion = Diffusion.from_pretrained(str(run.ckpt), load_config(run.config), device="cpu")
    images = torch.stack([torch.from_numpy(pixels(folder_of_images, f"{i}.png")) for i in range(6)])[:, None]
    a = diffusion.alphas_cumprod[401]
    x = a.sqrt() * diffusion.from_images(images) + (1 - a).sqrt() * diffusion.latents(range(6))
    half = replace(diffusion.sampling(10), timesteps=(0, 100, 200, 300, 400))
    expected = diffusion.to_images(last(diffusion.denoise(x, half)).x)[:, 0].numpy().astype(int)
    for i in range(6):
        assert np.abs(pixels(tmp_path / "image_samples" / "images", f"{i}.png") - expected[i]).max() <= 1
    refuses(*of, "--sample", "--edit", "--strength", 1.5, says=["--strength is 1.5"], tree=tmp_path)


SEVERAL = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import main
for port, command in json.loads(sys.argv[2]):
    os.environ["MASTER_PORT"] = str(port)
    assert main.main(command) == 0
"""


@pytest.fixture(scope="module")
def tasks(run, folder_of_images, tmp_path_factory):
    """A command for each task that reads or compares images, the folder of its pictures, and these."""
    of, exp = ["--config", run.config, "--ckpt", run.ckpt, "--sample"], tmp_path_factory.mktemp("tasks")
    given = ["--input", folder_of_images, "--timesteps", 30, "--batch_size", 2]
    found = {
        "restoration": ([*given, "--restoration", "inpainting", "--eta", 0.85, "--travel", 4, 2], ""),
        "edit": ([*given, "--edit"], ""),
        "consistency": (["--consistency", "--timesteps", 20, 30, "--batch_size", 2], "S30_eta0_seed1234"),
        "interpolation": (["--interpolation", "--between", 0, 1, 2, 3, "--points", 4, "--timesteps", 30], ""),
    }
    for name, (arguments, cell) in found.items():
        command = [str(word) for word in (*of, *arguments, "-i", name)]
        main(*command, "--exp", exp)
        found[name] = (command, f"{name}/{cell}", pngs(exp / "image_samples" / name / cell))
    return found


@pytest.mark.parametrize("name", ["restoration", "consistency", "edit", "interpolation"])
def test_a_killed_task_goes_on_to_the_same_pictures(tasks, tmp_path, name):
    command, folder, whole = tasks[name]
    made = tmp_path / "image_samples" / folder
    with started([WARM, MAIN, *command, "--exp", tmp_path]) as process:
        wait_until(lambda: list(made.glob("*.png")), process, pause=0.002)
    assert 0 < len(pngs(made)) < len(whole)
    main(*command, "--exp", tmp_path)
    assert pngs(made) == whole


def test_tasks_by_two_ranks_are_those_by_one(tasks, tmp_path):
    (tmp_path / "several.py").write_text(SEVERAL)
    commands = [(free_port(), [*command, "--exp", str(tmp_path)]) for command, _, _ in tasks.values()]
    two_ranks(str(ROOT), json.dumps(commands), script=tmp_path / "several.py")
    for _, folder, whole in tasks.values():
        assert pngs(tmp_path / "image_samples" / folder) == whole
