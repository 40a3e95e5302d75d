"""Configs of related programs load, with what decides nothing here named in one line."""

import logging

import pytest
import yaml
from support.layouts import encoded, photo
from support.program import main, refuses, small_config

from configs import config_from, load_config
from configs.refusal import Refusal
from datasets import dataset_root, get_dataset


@pytest.fixture
def tree():
    """A config with all of upstream's keys."""
    return yaml.safe_load((load_config.__globals__["CONFIG_DIR"] / "celeba_hq.yml").read_text())


def test_foreign_keys_are_named_in_one_line_and_change_nothing(tree, caplog):
    plain = config_from(tree, "c.yml")
    tree["data"] |= {"num_classes": 10, "out_of_dist": False, "dataset": "CelebA_HQ"}
    tree["model"] |= {"model_type": "ddpm", "is_upsampling": False}
    tree["sampling"] |= {"total_N": 1000, "cond_class": False}
    tree["time_travel"] = {"T_sampling": 100}
    with caplog.at_level(logging.WARNING):
        assert config_from(tree, "c.yml") == plain
    [line] = caplog.messages
    for name in (
        "time_travel",
        "data.num_classes",
        "data.out_of_dist",
        "model.model_type",
        "sampling.total_N",
    ):
        assert name in line


@pytest.mark.parametrize(
    "section, key, value, says",
    [
        ("model", "model_type", "guided_diffusion", "another network"),
        ("sampling", "cond_class", True, "another network"),
        ("data", "num_clases", 10, "unknown key data.num_clases"),
        ("model", "ema_rat", 0.9, "did you mean 'ema_rate'"),
        ("data", "dataset", "CelebA_HD", "data.dataset is 'CelebA_HD'"),
    ],
)
def test_what_would_decide_something_is_refused(tree, section, key, value, says):
    tree[section][key] = value
    with pytest.raises(Refusal, match=says):
        config_from(tree, "c.yml")


def test_a_config_for_sampling_needs_no_training_and_does_not_train(run, tmp_path):
    path = small_config(tmp_path / "c.yml")
    kept = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k not in ("training", "optim")}
    path.write_text(yaml.safe_dump(kept))
    command = ("--config", path, "--exp", tmp_path)
    main(*command, "--ckpt", run.ckpt, "--sample --fid --num_samples 1 --timesteps 1")
    refuses(*command, "--doc", "d", says=("the key training is missing; training needs it",), tree=tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_celeba_hq_is_a_folder_or_packed(tree, tmp_path, packed):
    from datasets import pack

    tree["data"]["image_size"] = 256
    data = config_from(tree, "c.yml").data
    root = dataset_root(data, str(tmp_path), None)
    assert root == tmp_path / "datasets" / "celeba_hq"
    photos = tmp_path / "photos" if packed else root
    photos.mkdir(parents=True)
    for i in range(3):
        (photos / f"{i}.png").write_bytes(encoded(photo(256, 256, i)))
    if packed:
        assert pack.main([str(photos), str(root), "--size", "256"]) == 0
    images = get_dataset(data, root, train=True)
    assert len(images) == 3 and images[0].shape == (3, 256, 256)
