"""A folder of images holds exactly what was asked. It is continued or extended, and never mixes two runs."""

import json
import resource
import shutil
import signal

import pytest
import torch
from support.images import pixels, pngs, sample
from support.processes import finished, started, wait_until
from support.program import MAIN, main, refuses, sampling
from support.warm import WARM


def test_exactly_n_images_a_manifest_and_a_sheet_beside_the_folder(run, ten):
    _, folder, process = ten
    assert {p.name for p in folder.iterdir()} == {f"{i}.png" for i in range(10)} | {"manifest.json"}
    assert {p.name for p in folder.parent.iterdir()} == {"ten", "ten.png", ".locks"}
    assert pixels(folder, "0.png").shape == (8, 8)
    assert (
        "10 steps asked, 10 evaluated, t from 900 to 0; 10 images to make in batches of 4" in process.stderr
    )
    assert "0 already there; float32 on cpu" in process.stderr
    assert str(folder) in process.stdout and str(folder.with_name("ten.png")) in process.stdout
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["num_samples"] == 10 and manifest["parts"][0]["batch_size"] == 4
    assert manifest["decides"]["timesteps"] == list(range(0, 1000, 100)) and manifest["decides"]["eta"] == 1


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
    arguments = ("--num_samples", 40, "--timesteps", 50, "--eta", 1)
    command = sampling(run.config, run.ckpt, exp, "-i", "f", *arguments)
    with started([WARM, MAIN, *command]) as process:
        wait_until((folder / "5.png").exists, process, pause=0.005)
    assert 5 < len(pngs(folder)) < 40
    main(*command)
    sample(run, tmp_path, "whole", *arguments)
    assert pngs(folder) == pngs(tmp_path / "image_samples" / "whole")
    assert {p.suffix for p in folder.iterdir()} == {".png", ".json"}


def test_an_extended_folder_is_byte_identical(run, ten, tmp_path):
    for n in (5, 10):
        sample(run, tmp_path, "f", "--num_samples", n, "--timesteps", 10, "--eta", 1)
    assert pngs(tmp_path / "image_samples" / "f") == pngs(ten[1])


def test_two_processes_do_not_share_a_folder(run, tmp_path):
    folder = tmp_path / "image_samples" / "f"
    arguments = sampling(run.config, run.ckpt, tmp_path, "-i", "f")
    command = (*arguments, "--num_samples", 100000, "--timesteps", 2)
    with started([WARM, MAIN, *command]) as process:
        wait_until((folder / "0.png").exists, process)
        process.send_signal(signal.SIGSTOP)
        refuses(*command, says=("in use by another process",), tree=tmp_path)


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
        command = sampling(run.config, tmp_path / name, ten[0], "-i", "ten")
        process = main(*command, "--num_samples", 10, "--timesteps", 10, "--eta", 1)
        assert "0 images to make in batches of 4, 10 already there" in process.stderr


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--eta", 0.5], "eta is 1.0 there and 0.5 here"),
        (["--seed", 3], "seed is 1234 there and 3 here"),
        (
            ["--timesteps", 20],
            "timesteps is 10 values from 0 to 900 (uniform, S = 10) there and "
            "20 values from 0 to 950 (uniform, S = 20) here",
        ),
        (["--skip_type", "quad"], "10 values from 0 to 800 (quad, S = 10) here"),
        (["--num_samples", 9], "made for 10 images, and 9 are asked"),
        (["--weights", "raw"], "logs/d/ckpt.pth (raw, step 4, hash "),
        (["--sample_type", "ddpm_noisy"], "sample_type is generalized there and ddpm_noisy here"),
    ],
)
def test_another_run_is_refused_by_name(run, ten, arguments, says):
    base = ["--num_samples", 10, "--timesteps", 10, "--eta", 1]
    command = sampling(run.config, run.ckpt, ten[0], "-i", "ten", *base, *arguments)
    refuses(*command, says=(says, "-i"), tree=ten[0], fresh=arguments[0] == "--eta")


def test_images_without_a_manifest_are_refused(run, tmp_path):
    folder = tmp_path / "image_samples" / "old"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(b"somebody's")
    command = sampling(run.config, run.ckpt, tmp_path, "--ni", "-i", "old", mode="--sequence")
    refuses(*command, "--timesteps", 5, says=("holds images and no manifest.json", "-i"), tree=tmp_path)
    (folder / "manifest.json").write_text("{")
    refuses(*command, "--timesteps", 5, says=("manifest.json is damaged",), tree=tmp_path)


def test_a_full_disk_is_a_sentence_and_leaves_whole_files(run, tmp_path):
    """A file-size limit of 4 kB stands in for a full disk: the manifest of 1,000 steps does not fit."""
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", "1")
    process = finished([WARM, MAIN, *command], limits={resource.RLIMIT_FSIZE: 4096})
    assert process.returncode == 1
    assert "File too large" in process.stderr and "Traceback" not in process.stderr
    assert not [p for p in (tmp_path / "image_samples" / "images").rglob("*") if p.is_file()]
