"""--set changes keys of the config for one command, typed and checked as the file is."""

import json

import yaml
from support.program import main, refuses, sampling, small_config

from configs import load_config


def test_a_run_is_trained_with_the_keys_that_were_set(tmp_path):
    config = small_config(tmp_path / "c.yml")
    sets = "--set training.n_iters=1 model.ema=false --set optim.lr=0.5 model.ch_mult=[1,1]"
    main("--config", config, "--exp", tmp_path, "--doc d", sets)
    same = small_config(
        tmp_path / "same.yml", training__n_iters=1, model__ema=False, optim__lr=0.5, model__ch_mult=[1, 1]
    )
    assert load_config(str(tmp_path / "logs" / "d" / "config.yml")) == load_config(str(same))


def test_a_folder_of_images_remembers_what_decides_them(run, tmp_path):
    command = sampling(run.config, run.ckpt, tmp_path, "--num_samples 1 --timesteps 2")
    main(*command, "--set diffusion.beta_end=0.004")
    manifest = json.loads((tmp_path / "image_samples" / "images" / "manifest.json").read_text())
    assert "0.004" in yaml.safe_dump(manifest)
    refuses(*command, says=("beta_end",), tree=tmp_path)
    (tmp_path / "alone.pth").symlink_to(run.ckpt)
    (tmp_path / "config.yml").write_text(run.config.read_text())
    alone = (
        "--ckpt",
        tmp_path / "alone.pth",
        "--exp",
        tmp_path,
        "--sample --fid --num_samples 1 --timesteps 2",
    )
    main(*alone, "--set diffusion.beta_end=0.004")  # the same folder goes on


def test_what_is_not_a_key_or_not_its_value_is_refused(tmp_path):
    for words, says in (
        ("--set optim.lr", ["section.key=value"]),
        ("--set optim.lrr=1", ["no such key", "optim.lr"]),
        ("--set optim.lr=fast", ["optim.lr is", "fast"]),
        ("--set optim.lr=1e-4", ["optim.lr is", "0.0001"]),
        ("--set model.ch=33", ["multiple of 32"]),
        ("--set model.ch_mult=[1,", ["--set model.ch_mult"]),
        ("--n_iters 5", ["--set training.n_iters="]),
        ("--batch_sizes 5", ["--batch_size"]),
    ):
        refuses("--config digits.yml --doc d --exp", tmp_path, words, says=says, tree=tmp_path)
    refuses("--inspect x.pth --set optim.lr=1", says=["--set goes with --config"], tree=tmp_path)
