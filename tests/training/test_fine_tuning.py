"""Training starts from given weights, whatever their format, and says what it took."""

import re

import pytest
import torch
from safetensors.torch import save_file
from support.program import main, refuses, small_config
from support.runs import assert_same, checkpoint, losses


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A config whose steps change no weights: what a run ends with is what it began with."""
    changes = dict(optim__lr=0.0, training__batch_size=32, training__n_iters=1)
    return small_config(tmp_path_factory.mktemp("still") / "c.yml", **changes)


def test_a_run_starts_from_the_weights_of_each_format(run, still, tmp_path):
    own = checkpoint(run.exp)
    torch.save([own["model"], own["optimizer"], 1, 4, own["ema"]], tmp_path / "upstream.pth")
    torch.save(own["ema"], tmp_path / "bare.pth")
    save_file({name: value.contiguous() for name, value in own["ema"].items()}, tmp_path / "a.safetensors")
    main("--config", run.config, "--exp", run.exp, "--doc d --export", tmp_path / "folder")
    first = set()
    for doc, ckpt, kind in (
        ("own", run.ckpt, "ema"),
        ("upstream", tmp_path / "upstream.pth", "ema"),
        ("bare", tmp_path / "bare.pth", "bare"),
        ("safetensors", tmp_path / "a.safetensors", "bare"),
        ("folder", tmp_path / "folder", "bare"),
    ):
        main("--config", still, "--exp", tmp_path, "--doc", doc, "--ckpt", ckpt)
        after = checkpoint(tmp_path, doc)
        assert_same(dict(after["model"]), own["ema"])
        for name, value in after["ema"].items():  # 0.9 w + 0.1 w
            torch.testing.assert_close(value, own["ema"][name])
        assert after["step"] == 1 and after["optimizer"]["state"][0]["step"] == 1
        log = (tmp_path / "logs" / doc / "stdout.txt").read_text()
        assert re.search(f"from the {kind} weights of {re.escape(str(ckpt))} .* to step 1,", log)
        first.add(losses(tmp_path, doc)[0])
    main("--config", still, "--exp", tmp_path, "--doc raw --weights raw --ckpt", run.ckpt)
    assert_same(checkpoint(tmp_path, "raw")["model"], own["model"])
    assert len(first) == 1 and losses(tmp_path, "raw")[0] not in first


def test_auto_takes_the_weights_for_a_new_run_only(run, still, tmp_path):
    command = ("--exp", tmp_path, "--doc d --resume_training auto --ckpt", run.ckpt)
    main("--config", still, *command)
    two = small_config(tmp_path / "c.yml", training__batch_size=32, training__n_iters=2)
    said = main("--config", two, *command).stderr
    assert "goes on from its own checkpoint" in said and "continuing after step 1 to step 2" in said
    said = main("--config", still, "--exp", tmp_path, "--doc new --plan --ckpt", run.ckpt)
    assert f"weights: {run.ckpt} (ema, step 4)" in said.stderr and "steps: 0 to 1" in said.stdout


def test_weights_that_do_not_fit_are_refused_and_the_old_run_stays(run, tmp_path):
    wide = small_config(tmp_path / "wide.yml", model__ch=64)
    (tmp_path / "logs" / "d").mkdir(parents=True)
    (tmp_path / "logs" / "d" / "stdout.txt").touch()
    command = ("--config", wide, "--exp", tmp_path, "--doc d --ni --ckpt", run.ckpt)
    refuses(*command, says=("does not fit the config", "temb.dense.0.weight"), tree=tmp_path)


def test_weights_that_are_missing_are_told_before_data_are_fetched(tmp_path):
    command = ("--config", "ddpm_cifar10.yml", "--exp", tmp_path, "--doc d --ckpt", tmp_path / "nothing.pth")
    refuses(*command, says=("no checkpoint at", "nothing.pth"), tree=tmp_path)
