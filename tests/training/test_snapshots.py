"""Which snapshots of a run stay, and what its folder says of the config it was trained with."""

import re
import shlex
import shutil

import pytest
import torch
from support.program import MAIN, main, refuses, small_config
from support.runs import assert_same, checkpoint

from configs import load_config
from configs.options import Options
from functions.weights.checkpoint import Checkpoint
from runners.training import run_folder


def snapshots(exp):
    return {int(path.stem.split("_")[1]) for path in (exp / "logs" / "d").glob("ckpt_*.pth")}


def test_the_newest_stay_and_every_third_step(tmp_path):
    keep = dict(training__keep_snapshots=2, training__keep_every=3, training__snapshot_freq=1)
    config = small_config(tmp_path / "c.yml", training__n_iters=8, training__batch_size=32, **keep)
    main("--config", config, "--exp", tmp_path, "--doc", "d")
    assert snapshots(tmp_path) == {3, 6, 7, 8}
    assert_same(checkpoint(tmp_path), checkpoint(tmp_path, name="ckpt_8.pth"))
    alone = small_config(tmp_path / "c.yml", training__keep_every=3)
    refuses("--config", alone, "--exp", tmp_path, "--doc e", says=("keep_snapshots",), tree=tmp_path)


def test_a_changed_config_is_logged_and_the_older_one_and_its_snapshots_stay(run, tmp_path):
    shutil.copytree(run.exp / "logs", tmp_path / "logs")
    folder = tmp_path / "logs" / "d"
    changes = dict(training__snapshot_freq=1, training__keep_snapshots=1, optim__lr=0.0005)
    config = small_config(tmp_path / "c.yml", training__n_iters=6, **changes)
    main("--config", config, "--exp", tmp_path, "--doc d --resume_training")
    assert snapshots(tmp_path) == {1, 2, 4, 6}  # the first three were written when all were to stay
    assert load_config(str(folder / "config.yml")) == load_config(str(config))
    assert load_config(str(folder / "config_4.yml")) == load_config(str(run.config))
    log = (folder / "stdout.txt").read_text()
    assert "changed after step 4: optim.lr is 0.0005, was 0.002" in log
    assert "changed after step 4: training.keep_snapshots is 1, was None" in log
    assert log.count("changed after step 4") == 4
    small_config(config, training__n_iters=7, **changes)
    main("--config", config, "--exp", tmp_path, "--doc d --resume_training")
    assert snapshots(tmp_path) == {1, 2, 4, 7}
    assert load_config(str(folder / "config_6.yml")).training.n_iters == 6


@pytest.mark.parametrize("sound", [True, False])
def test_none_goes_before_a_newer_one_was_read_back_and_is_whole(tmp_path, sound):
    keep = load_config(str(small_config(tmp_path / "c.yml", training__keep_snapshots=1))).training
    options = Options(exp=str(tmp_path), doc="d")
    for step in (1, 2):
        value = torch.ones(1) if sound or step == 1 else torch.full((1,), torch.nan)
        run_folder.save(options, Checkpoint({"a": value}, optimizer={}, step=step), keep)
    assert snapshots(tmp_path) == ({2} if sound else {1, 2})


def test_the_end_of_a_run_says_commands_that_work(run, tmp_path):
    to_sample, to_measure = (
        shlex.split(re.search(f"{what}.*: python {re.escape(MAIN)} (.*)", run.stderr)[1])
        for what in ("to sample", "to measure")
    )
    assert f"to sample: python {MAIN} " in (run.exp / "logs" / "d" / "stdout.txt").read_text()
    assert to_sample[:4] == ["--exp", str(run.exp), "--doc", "d"] and to_sample[8:10] == ["-i", "d_4"]
    main(*to_sample, "--num_samples 1 --timesteps 2 -i", tmp_path / "a")
    assert (tmp_path / "a" / "0.png").exists()
    assert "metrics: fid against train" in main(*to_measure, "--num_samples 1 --plan").stdout
