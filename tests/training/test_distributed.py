"""Two processes under torchrun (gloo) do what one does."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import started, wait_until
from support.program import command_of_two, main, small_config, torchrun, two_ranks

from functions.runtime import device as devices


def weights(exp, doc, kind="model"):
    saved = torch.load(exp / "logs" / doc / "ckpt.pth", weights_only=True)
    return torch.cat([value.flatten().double() for value in saved[kind].values()])


@pytest.fixture
def few(tmp_path):
    """22 pictures to train on, in batches of 7, 7, 7 and 1: 7 and 1 have unequal halves."""
    for split, n in (("train", 22), ("test", 5)):
        (tmp_path / "few" / split).mkdir(parents=True)
        for i in range(n):
            Image.effect_noise((8, 8), 80).save(tmp_path / "few" / split / f"{i}.png")
    changes = dict(data__dataset="FOLDER", training__batch_size=7, model__dropout=0.0)
    return changes, ("--data", tmp_path / "few")


def test_two_processes_train_to_the_same_weights(tmp_path, few):
    """SGD without dropout or clipping, which would hide a wrong scale."""
    changes, data = few
    changes |= dict(optim__optimizer="SGD", optim__lr=1e-5, optim__grad_clip=None, training__n_iters=7)
    config = small_config(tmp_path / "c.yml", **changes)
    main("--config", config, "--exp", tmp_path, "--doc", "one", *data)
    process = torchrun("--config", config, "--exp", tmp_path, "--doc", "two", *data)
    assert "in 2 processes" in process.stderr
    for kind in ("model", "ema"):
        one, two = weights(tmp_path, "one", kind), weights(tmp_path, "two", kind)
        assert (one - two).norm() / one.norm() < 1e-6
    losses = [
        (tmp_path / "logs" / doc / "stdout.txt").read_text().split("validation_loss: ")[1].split()[0]
        for doc in ("one", "two")
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-4)


def test_two_processes_train_alike_with_adam_too_each_in_parts(tmp_path, few):
    """Adam divides by a gradient's size, so that rounding counts for more: within 1e-3."""
    changes, data = few
    config = small_config(tmp_path / "c.yml", **changes, training__n_iters=5, training__accumulate=3)
    main("--config", config, "--exp", tmp_path, "--doc", "one", *data)
    two_ranks("--config", config, "--exp", tmp_path, "--doc", "two", *data)
    one, two = weights(tmp_path, "one"), weights(tmp_path, "two")
    assert (one - two).norm() / one.norm() < 1e-3


def test_a_rank_that_dies_ends_the_job_and_one_process_goes_on(tmp_path):
    changes = dict(optim__optimizer="SGD", optim__lr=1e-5, optim__grad_clip=None, model__dropout=0.0)
    changes |= dict(
        training__batch_size=64, training__n_iters=15, training__snapshot_freq=5, training__validation_freq=99
    )
    config = small_config(tmp_path / "c.yml", **changes)
    command = command_of_two("--config", config, "--exp", tmp_path, "--doc", "dies")
    with started(command) as process:
        wait_until((tmp_path / "logs" / "dies" / "ckpt_5.pth").exists, process)
        os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "SIGKILL" in stderr or "Signal 9" in stderr
    main("--config", config, "--exp", tmp_path, "--doc", "dies", "--resume_training")
    main("--config", config, "--exp", tmp_path, "--doc", "whole")
    one, two = weights(tmp_path, "dies"), weights(tmp_path, "whole")
    assert (one - two).norm() / two.norm() < 1e-6


def process_of_rank(rank, parent) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(
        int(pid) for pid in children if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{pid}/environ").read_text()
    )


def test_two_processes_sample_the_same_images_and_one_continues(run, tmp_path):
    command = (
        "--config",
        run.config,
        "--ckpt",
        run.ckpt,
        "--sample --fid --timesteps 5 --eta 1 --num_samples 11",
    )
    main(*command, "--exp", tmp_path / "one")
    said = two_ranks(*command, "--exp", tmp_path / "two").stderr
    assert "| 15/15 [" in said  # the bar is of all three batches of five steps, of which rank 0 makes two
    one, two = (tmp_path / exp / "image_samples" / "images" for exp in ("one", "two"))
    for i in range(11):
        a, b = (np.asarray(Image.open(folder / f"{i}.png")).astype(int) for folder in (one, two))
        assert np.abs(a - b).max() <= 1
    process = two_ranks(*command, "--exp", tmp_path / "two", "--eta", 0, code=2)
    assert "eta is 1.0 there and 0.0 here" in process.stderr
    (two / "10.png").unlink()
    assert "1 images to make" in main(*command, "--exp", tmp_path / "two").stderr


def test_a_plan_is_printed_once(run, tmp_path):
    command = ("--config", run.config, "--ckpt", run.ckpt, "--sample --fid --timesteps 5 --num_samples 11")
    process = two_ranks(*command, "--exp", tmp_path, "--plan")
    assert process.stdout.count("a plan: nothing is made") == 1 and not list(tmp_path.iterdir())


def test_a_refusal_ends_every_process(run, tmp_path):
    process = two_ranks("--config", run.config, "--ckpt", tmp_path / "no.pth", "--sample", "--fid", code=2)
    assert "no checkpoint at" in process.stderr


def test_idle_gpus_are_mentioned_with_the_command_that_uses_them(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(sys, "argv", ["main.py", "--config", "cifar10.yml"])
    caplog.set_level("INFO")
    devices.mention_idle_gpus(torch.device("cuda", 0))
    devices.mention_idle_gpus(torch.device("cpu"))
    assert [record.message.split("all of them: ")[1] for record in caplog.records] == [
        "torchrun --nproc_per_node 4 main.py --config cifar10.yml"
    ]
