"""Machines with little, and jobs beside one another."""

import errno
import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import finished
from support.program import MAIN, main, small_config, words
from support.runs import assert_same, checkpoint
from support.warm import WARM

from configs import machine
from configs.refusal import Refusal
from datasets.batches import load, plain_order
from datasets.pictures import Pictures
from datasets.tree import Files
from functions.disk import files
from functions.metrics.metrics import Reference
from runners.evaluation import reference


@pytest.fixture
def photos(tmp_path) -> Path:
    """600 pictures, of which one is not whole, and is not tried when the folder is opened."""
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for i in range(600):
        Image.fromarray(random.integers(256, size=(8, 8), dtype=np.uint8)).save(folder / f"{i:03}.png")
    (folder / "005.png").write_bytes((folder / "005.png").read_bytes()[:60])
    return folder


def config(path: Path, steps: int, on_error: str = "skip", workers: int = 0) -> Path:
    return small_config(
        path, data__dataset="FOLDER", data__image_size=8, data__channels=1, data__on_error=on_error,
        data__num_workers=workers, model__in_channels=1, model__out_ch=1, training__batch_size=100,
        training__n_iters=steps,
    )  # fmt: skip


def test_the_next_image_stands_for_one_that_cannot_be_read(tmp_path, photos):
    """The weights are those of a folder where it is the next one, through two epochs and a resume."""
    command = ("--exp", tmp_path, "--data", photos, "--config")
    half, whole = config(tmp_path / "half.yml", 4), config(tmp_path / "whole.yml", 9)
    said = main(*command, half, "--doc", "a").stderr
    said += main(*command, whole, "--doc", "a", "--resume_training").stderr
    named = [line for line in said.splitlines() if "005.png" in line]
    assert 1 <= len(named) <= 2 and all("is damaged" in line and "skipped: 1" in line for line in named), said
    (photos / "005.png").write_bytes((photos / "006.png").read_bytes())
    main(*command, config(tmp_path / "stop.yml", 9, "stop"), "--doc", "b")
    assert_same(checkpoint(tmp_path, "a"), checkpoint(tmp_path, "b"))


def test_where_no_image_can_be_read_skipping_ends(tmp_path, photos):
    for path in photos.iterdir():
        path.write_bytes(b"")
    command = ("--exp", tmp_path, "--data", photos, "--config", config(tmp_path / "c.yml", 4), "--doc", "a")
    assert ".png is damaged" in main(*command, code=2).stderr


def test_a_worker_names_what_it_skips():
    class Numbers:
        def __len__(self):
            return 6

        def __getitem__(self, i):
            if i in (2, 5):
                raise Refusal(f"number {i} is bad")
            return torch.full((1, 1, 1), i, dtype=torch.uint8)

    loaded = [images.flatten().tolist() for _, images in load(Numbers(), plain_order(6, 4), slice, 1, "skip")]
    assert loaded == [[0, 1, 3, 3], [4, 0]]
    with pytest.raises(Refusal, match="number 2 is bad"):
        list(load(Numbers(), plain_order(6, 4), slice, 1))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_where_a_worker_dies_its_image_is_named(photos, monkeypatch, number):
    """In training the state is saved then, as for an image that cannot be read."""
    pictures = Pictures(Files(photos, [f"{i:03}.png" for i in range(20)]), (1, 8, 8))
    read = Files.read
    monkeypatch.setattr(
        Files, "read", lambda self, i: os.kill(os.getpid(), number) if i == 13 else read(self, i)
    )
    with pytest.raises(OSError, match=f"has died, at {photos}/013.png "):
        list(load(pictures, plain_order(20, 4), slice, 1, "skip"))


def test_without_a_home_there_is_a_cache(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # nobody that the system knows
    with pytest.raises(RuntimeError):
        Path.home()
    assert str(2**31 - 7) in machine.cache().name


def test_64_descriptors_are_enough(tmp_path, photos):
    """To train with workers, to validate, and to sample."""
    path = config(tmp_path / "c.yml", 4, workers=2)
    for more in (f"--data {photos}", "--sample --fid --num_samples 4 --timesteps 2"):
        command = [WARM, MAIN, *words(["--config", path, "--exp", tmp_path, "--doc d", more])]
        process = finished(command, limits={resource.RLIMIT_NOFILE: 64})
        assert process.returncode == 0, process.stderr


def test_two_jobs_compute_the_same_statistics_once(tmp_path):
    images, sizes, found = torch.randint(256, (64, 3, 4, 4), dtype=torch.uint8), [], []

    class Means:
        hash, name, dim, device = "means", "means", 3, torch.device("cpu")

        def __call__(self, images):
            sizes.append(len(images))
            time.sleep(0.2)
            return images.float().mean((2, 3)), None

    def job():
        found.append(reference.compute(Reference("r", "r", images), {"features"}, Means(), tmp_path, 0))

    jobs = [threading.Thread(target=job) for _ in range(2)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join(timeout=60)
    assert sum(sizes) == 64 and len(found) == 2
    assert torch.equal(found[0].features, found[1].features)
    assert torch.equal(found[0].gaussian.mean, found[1].gaussian.mean)


def test_an_export_needs_no_hard_links(tmp_path, monkeypatch):
    """As on a memory card: what such a file system says stands in for one."""

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    with files.atomic(tmp_path / "out", new=True) as temporary:
        temporary.write_text("ours")
    assert (tmp_path / "out").read_text() == "ours" and list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_export_does_not_replace_what_was_made_meanwhile(tmp_path, kind):
    path = tmp_path / "out"
    making = files.atomic(path, new=True) if kind == "file" else files.atomic_folder(path)
    with pytest.raises(Refusal, match="out was made meanwhile"), making as temporary:
        (temporary if kind == "file" else temporary / "a").write_text("ours")
        if kind == "folder":
            path.mkdir()
        other = path if kind == "file" else path / "a"
        other.write_text("theirs")
    assert other.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]


def test_the_half_of_a_folder_that_a_kill_left_goes_with_the_next_one(tmp_path):
    if (pid := os.fork()) == 0:
        with files.atomic_folder(tmp_path / "diffusers") as temporary:
            (temporary / "unet").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".diffusers.")
    with files.atomic_folder(tmp_path / "diffusers"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["diffusers"]
