"""--new-config: a folder of pictures becomes a config, and the three commands that it prints work."""

import shlex
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.layouts import photo
from support.program import main, refuses

from configs import config_from, load_config
from runners import doubts
from runners.diffusion import Diffusion, build_unet
from runners.tools.new_config import Look, size_for, steps_for, text_for


def pictures(folder, sizes, grey=False):
    folder.mkdir()
    for i, size in enumerate(sizes):
        picture = photo(*size, seed=i)
        (picture.convert("L").convert("RGB") if grey else picture).save(folder / f"{i}.png")
    return folder


def test_the_printed_commands_preview_train_and_sample(tmp_path):
    pictures(tmp_path / "my things", [(20, 24)] * 5)
    said = main("--new-config", "my things", "--exp", "E", cwd=tmp_path).stdout
    config = load_config(str(tmp_path / "my things.yml"))
    assert config.data.shape == (3, 16, 16) and config.data.dataset == "FOLDER"
    assert "5 pictures" in said and "20 x 24" in said

    # Run them as they are, made short by further flags.
    lines = dict(line.split(": ", 1) for line in said.splitlines() if " main.py " in line)
    words = {what: shlex.split(line)[2:] for what, line in lines.items()}
    assert list(words) == ["look", "train", "sample"]
    main(*words["look"], cwd=tmp_path)
    assert (tmp_path / "E" / "image_samples" / "my things.preview.png").is_file()
    main(*words["train"], "--set", "training.n_iters=1", cwd=tmp_path)
    main(*words["sample"], "--num_samples", 2, "--batch_size", 2, "--timesteps", 2, cwd=tmp_path)
    made = sorted(path.name for path in (tmp_path / "E" / "image_samples" / "my things").glob("*.png"))
    assert made == ["0.png", "1.png"]
    assert all(shlex.join(words[what]) in (tmp_path / "my things.yml").read_text() for what in words)


def test_channels_and_size_are_those_of_the_pictures(tmp_path):
    pictures(tmp_path / "grey", [(70, 64)] * 3 + [(40, 300)] * 2, grey=True)
    main("--new-config", "grey", cwd=tmp_path)
    assert load_config(str(tmp_path / "grey.yml")).data.shape == (1, 64, 64)
    assert "enlarged" not in main("--new-config", "grey", "--size", 24, "--config", "c", cwd=tmp_path).stdout
    assert load_config(str(tmp_path / "c.yml")).data.shape == (1, 24, 24)

    assert (
        "2 of 5 pictures are smaller and will be enlarged"
        in main("--new-config", "grey", "--size", 48, "--config", "e.yaml", cwd=tmp_path).stdout
    )

    # One coloured pixel, and the pictures are coloured.
    array = np.zeros((64, 64, 3), np.uint8)
    array[3, 4, 0] = 9
    Image.fromarray(array).save(tmp_path / "grey" / "x.png")
    main("--new-config", "grey", "--config", "d.yml", cwd=tmp_path)
    assert load_config(str(tmp_path / "d.yml")).data.channels == 3


@pytest.mark.parametrize("n", [1, 5_000, 10**6])
@pytest.mark.parametrize("size", [8, 12, 28, 64, 96, 256])
def test_every_such_config_is_one_without_doubts(n, size, caplog):
    """Its network can be built, and each of its resolutions with attention is one of the network's."""
    config = config_from(yaml.safe_load(text_for(Look(n, Counter(), False), size, {})), "c.yml")
    doubts.say(config, Diffusion(config, "cpu").alphas_cumprod)
    with torch.device("meta"):
        build_unet(config)
    assert caplog.text == ""
    assert config.model.ema_rate <= 1 - 1 / config.training.n_iters  # the average does not outlast the run


def test_more_pictures_or_larger_ones_are_trained_for_longer():
    assert steps_for(300, 16) == 1200
    numbers = [steps_for(n, 32) for n in (10, 300, 1_000, 50_000, 10**8)]
    assert numbers == sorted(numbers) and len(set(numbers)) == 4
    assert steps_for(300, 16) < steps_for(300, 32) < steps_for(300, 64)


def test_half_of_the_pictures_are_not_enlarged():
    assert size_for(Look(3, Counter([(500, 400), (33, 90), (31, 31)]), False)) == 32
    assert size_for(Look(1, Counter([(5, 5)]), False)) == 8


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--new-config", "nowhere"], ["nowhere", "this folder does not exist"]),
        (["--new-config", "empty"], ["empty holds no images"]),
        (["--new-config", "here"], ["here.yml exists already", "--config"]),
        (["--new-config", "here", "--config", "a.yml", "--size", "30"], ["--size is 30", "multiple of 4"]),
        (["--new-config", "here", "--config", "a.yml", "--size", "4"], ["--size is 4", "at least 8"]),
        (["--new-config", ""], ["--new_config is ''"]),
        (["--new-config", "here", "--test"], ["--test and --new_config are two tasks"]),
        (["--config", "digits.yml", "--doc", "d", "--size", "32"], ["--size goes with --new-config"]),
    ],
)
def test_what_it_refuses(tmp_path, arguments, says):
    pictures(tmp_path / "here", [(9, 9)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "here.yml").write_text("mine")
    refuses(*arguments, says=says, tree=tmp_path, cwd=tmp_path)
