"""A run whose files or data are damaged goes on from what is whole, and says so."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from support.program import main, refuses, small_config

from datasets.batches import load, plain_order


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, whose ckpt.pth and newest snapshot are one file, as training leaves them."""
    shutil.copytree(run.exp, tmp_path / "e")
    logs = tmp_path / "e" / "logs" / "d"
    newest = max(logs.glob("ckpt_*.pth"), key=lambda path: int(path.stem[5:]))
    (logs / "ckpt.pth").unlink()
    (logs / "ckpt.pth").hardlink_to(newest)
    return logs


def resume(run, logs, how="auto", **options):
    tree = yaml.safe_load(Path(run.config).read_text())
    tree["training"]["n_iters"] = 8
    (logs.parent.parent / "longer.yml").write_text(yaml.safe_dump(tree))
    command = ("--config", logs.parent.parent / "longer.yml", "--exp", logs.parent.parent, "--doc", "d")
    return command, ("--resume_training", *([how] if how == "auto" else []))


@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_auto_goes_on_from_the_newest_whole_snapshot(run, copy, damage):
    older = 2 if damage == "flipped" else 1
    if damage == "flipped":
        content = bytearray((copy / "ckpt.pth").read_bytes())
        content[len(content) // 2] ^= 1
        (copy / "ckpt.pth").write_bytes(content)  # in place: the newest snapshot is damaged too
    else:
        (copy / "ckpt.pth").unlink()
        for path in copy.glob("ckpt_*.pth"):
            if path.name != "ckpt_1.pth":
                path.unlink()
    command, auto = resume(run, copy)
    refuses(*command, "--resume_training", says=(f"ckpt_{older}.pth is whole",), tree=copy)
    wider = ("--set", "model.num_res_blocks=2")
    refuses(*command, *auto, *wider, says=(f"ckpt_{older}.pth has no parameter",), tree=copy)
    said = main(*command, *auto).stderr
    assert f"ckpt_{older}.pth, which is whole" in said and f"continuing after step {older}" in said
    assert torch.load(copy / "ckpt.pth", weights_only=True)["step"] == 8


@pytest.mark.parametrize(
    "section, key, value", [("diffusion", "beta_end", 0.03), ("data", "rescaled", False)]
)
def test_a_resume_that_changes_what_the_weights_mean_is_refused(run, copy, section, key, value):
    command, auto = resume(run, copy)
    config = Path(command[1])
    tree = yaml.safe_load(config.read_text())
    tree[section][key] = value
    config.write_text(yaml.safe_dump(tree))
    refuses(*command, *auto, says=(f"{section}.{key}", "would mean something else"), tree=copy)


def test_an_image_that_cannot_be_read_loses_no_step(tmp_path):
    """Opening a folder tries 500 of its images. This one is not among them, and is met in training."""
    generator = torch.Generator().manual_seed(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(600):
        pixels = torch.randint(256, (8, 8), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(photos / f"{i:03}.png")
    bad = photos / "005.png"
    bad.write_bytes(bad.read_bytes()[:60])
    config = small_config(
        tmp_path / "c.yml", data__dataset="FOLDER", data__image_size=8, data__channels=1,
        model__in_channels=1, model__out_ch=1, training__batch_size=10, training__n_iters=60,
        training__snapshot_freq=1000,
    )  # fmt: skip
    command = ("--config", config, "--exp", tmp_path, "--doc", "d", "--data", photos)
    said = main(*command, code=2).stderr
    step = torch.load(tmp_path / "logs" / "d" / "ckpt.pth", weights_only=True)["step"]
    assert step > 1 and "005.png" in said and f"step {step} is saved" in said


def test_a_log_that_takes_no_more_does_not_stop_training(run, tmp_path):
    logs = tmp_path / "logs" / "d"
    logs.mkdir(parents=True)
    (logs / "stdout.txt").symlink_to("/dev/full")
    said = main("--config", run.config, "--exp", tmp_path, "--doc", "d", "--resume_training", "auto")
    assert (tmp_path / "logs" / "d" / "ckpt.pth").exists() and "Traceback" not in said.stderr


def test_workers_do_not_need_shared_memory():
    """A tensor from a worker would lie in /dev/shm, which is 64 MB in many containers."""

    class Numbers:
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return torch.full((1, 2, 2), i, dtype=torch.uint8)

    loaded = list(load(Numbers(), plain_order(6, 3), slice, num_workers=1))
    assert [images[:, 0, 0, 0].tolist() for _, images in loaded] == [[0, 1, 2], [3, 4, 5]]
    assert not any(images.is_shared() for _, images in loaded)


def test_a_run_has_a_place_of_its_own(run, tmp_path):
    """Nothing outside of the logs is moved, no run within another, and nothing that is not a run."""
    for name in ("a/b", "c", "link"):
        (tmp_path / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(run.exp / "logs" / "d", tmp_path / "logs" / "a" / "b")
    for folder in (tmp_path / "photos", tmp_path / "logs" / "c"):
        folder.mkdir()
        (folder / "holiday.jpg").write_bytes(b"a photo")
    (tmp_path / "logs" / "link").symlink_to(tmp_path / "photos")
    command = ("--config", run.config, "--exp", tmp_path, "--ni", "--doc")
    for doc, says in (
        ("link", f"leads to {tmp_path}/photos, out of {tmp_path}/logs"),
        ("link/x", f"leads to {tmp_path}/photos/x, out of {tmp_path}/logs"),
        ("a", f"has the run {tmp_path}/logs/a/b inside"),
        ("a/b/x/y", f"lies in the run {tmp_path}/logs/a/b"),
        ("c", "holds files that are not a run's"),
    ):
        refuses(*command, doc, says=(says, "take another --doc"), tree=tmp_path)
