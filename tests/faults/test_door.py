"""What comes from outside and is not what it should be: one sentence that names it, never a traceback."""

import json
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.images import pngs, sample
from support.program import refuses, sampling

from configs import door, load_config
from configs.refusal import Refusal, quoted
from functions.weights import load_checkpoint


@pytest.fixture
def fifo(tmp_path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.mark.parametrize("read", [load_checkpoint, lambda p: load_config(str(p)), door.regular])
def test_what_is_not_a_file_is_never_waited_for(fifo, read):
    for path in (fifo, Path("/dev/zero")):
        with pytest.raises(Refusal, match=f"{path.name}"):
            read(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "a: &a [1]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(30)),
        "data: " + "1" * 5000,
        "? [a]\n: 1",
        "data: {image_size: [[[[[[[[1]]]]]]]]}",
        "data: !!binary '='",
        "data: !!timestamp x",
        "\x00",
        "training: \N{ZERO WIDTH SPACE}",
    ],
)
def test_a_config_that_no_parser_likes(tmp_path, text):
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(Refusal) as refusal:
        load_config(str(tmp_path / "c.yml"))
    assert "c.yml" in str(refusal.value) and len(str(refusal.value)) < 1000


def test_values_in_sentences_are_short_and_on_one_line():
    nested = ["x" * 1000]
    for _ in range(100):
        nested = [nested, nested]  # its repr has 2^100 parts
    for value in (nested, 10**100_000, "a\nb\x1b[31m", {"k": nested}):
        text = quoted(value)
        assert len(text) <= 80 and text.isprintable(), text


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("model.num_res_blocks", 10**9, "a network"),
        ("training.batch_size", 10**12, "a batch of 1000000000000 images"),
        ("diffusion.num_diffusion_timesteps", 10**12, "a schedule of 1000000000000 timesteps"),
        ("diffusion.num_diffusion_timesteps", 10**400, "over a billion GiB"),  # no float is so large
        ("model.ch_mult", [1] * 1000, "levels"),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(run, tmp_path, key, value, says):
    section, name = key.split(".")
    tree = yaml.safe_load(Path(run.config).read_text())
    tree[section][name] = value
    (tmp_path / "c.yml").write_text(yaml.safe_dump(tree))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuses("--config", tmp_path / "c.yml", "--exp", tmp_path, "--doc", "d", says=(says,), tree=tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_more_images_than_a_machine_can_name_are_refused(run, tmp_path):
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples", 10**13)
    refuses(*command, says=("10000000000000 images", "this machine has"), tree=tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "cut to 50,000", "zeros", "nothing in it"])
def test_a_damaged_checkpoint_is_never_loaded(run, tmp_path, damage):
    content = bytearray(run.ckpt.read_bytes())
    middle = _middle_of_a_tensor(run.ckpt)
    match damage:
        case "flip":
            content[middle] ^= 4
        case "cut":
            del content[len(content) // 2 :]
        case "cut to 50,000":
            del content[50_000:]
        case "zeros":
            content[middle : middle + 64] = bytes(64)
        case "nothing in it":
            content.clear()
    path = tmp_path / "c.pth"
    path.write_bytes(content)
    with pytest.raises(Refusal, match=r"c\.pth is damaged"):
        load_checkpoint(path)
    refuses("--inspect", path, says=("c.pth is damaged",), tree=tmp_path)


def _middle_of_a_tensor(path: Path) -> int:
    """A position in the file that belongs to the numbers of its largest tensor."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    return largest.header_offset + 200 + largest.file_size // 2


@pytest.mark.parametrize("part", ["model", "ema"])
def test_weights_that_are_not_finite_are_named(run, tmp_path, part):
    content = torch.load(run.ckpt, weights_only=True)
    content[part]["conv_out.bias"][0] = float("nan")
    torch.save(content, tmp_path / "nan.pth")
    for command in (
        ("--inspect", tmp_path / "nan.pth"),
        sampling(run.config, tmp_path / "nan.pth", tmp_path),
    ):
        refuses(*command, says=("nan.pth", "conv_out.bias", "not finite"), tree=tmp_path)


def test_pngs_that_a_power_cut_left_are_made_anew(run, tmp_path):
    arguments = ("--num_samples", 6, "--timesteps", 2)
    sample(run, tmp_path, "cut", *arguments)
    folder = tmp_path / "image_samples" / "cut"
    whole = pngs(folder)
    (folder / "0.png").write_bytes(b"")
    (folder / "3.png").write_bytes(whole["3.png"][:50])
    (folder / "5.png").write_bytes(bytes(len(whole["5.png"])))
    said = sample(run, tmp_path, "cut", *arguments)
    assert "3 images to make" in said.stderr and pngs(folder) == whole


def test_images_do_not_go_among_somebodys_files(run, tmp_path):
    photos = tmp_path / "image_samples" / "photos"
    photos.mkdir(parents=True)
    (photos / "holiday.jpg").write_bytes(b"a photo")
    command = sampling(run.config, run.ckpt, tmp_path, "-i", "photos", "--num_samples", 1, "--timesteps", 1)
    refuses(*command, says=("holds other files", "-i"), tree=tmp_path)


@pytest.mark.parametrize("flag", ["--doc", "-i"])
@pytest.mark.parametrize("name", ["..", "../logs", "a/../../b", "/"])
def test_a_name_stays_below_its_folder(run, tmp_path, flag, name):
    command = ("--config", run.config, "--exp", tmp_path, "--ni")
    task = () if flag == "--doc" else ("--ckpt", run.ckpt, "--sample", "--sequence")
    refuses(*command, *task, flag, name, says=("must be a folder's name",), tree=tmp_path)


def test_a_block_of_zeros_in_kept_features_is_noticed(run, extractor, tmp_path):
    arguments = ("--num_samples", 8, "--timesteps", 2, "--metrics", "kid", "--features", extractor)
    sample(run, tmp_path, "a", *arguments)
    [features] = (tmp_path / "fid_stats").glob("*.features")
    content = bytearray(features.read_bytes())
    content[400:464] = bytes(64)
    features.write_bytes(content)
    said = sample(run, tmp_path, "b", *arguments)
    assert "is damaged" in said.stderr and "computed anew" in said.stderr
    values = [
        json.loads((tmp_path / "image_samples" / f"{name}.metrics.json").read_text())["measurements"][0]
        for name in "ab"
    ]
    assert values[0]["metrics"] == values[1]["metrics"]
    assert np.isfinite(values[0]["metrics"]["kid"]["mean"])


@pytest.mark.parametrize(
    "content, says",
    [
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of git LFS"),
        (b"\x89PNG\r\n\x1a\n", "is a picture, not a checkpoint"),
    ],
)
def test_what_people_name_by_mistake_is_told_for_what_it_is(run, tmp_path, content, says):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    for command in (("--inspect", path), sampling(run.config, path, tmp_path)):
        refuses(*command, says=("model.ckpt", says), tree=tmp_path)


def test_a_program_is_not_weights(run, extractor, tmp_path):
    refuses("--inspect", extractor, says=("is an exported program, not weights",), tree=tmp_path)
