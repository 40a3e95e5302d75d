"""A run is found by --doc alone: its config, its data and its precision. Traps are told in time."""

from dataclasses import replace

import pytest
import torch
from support.layouts import photo
from support.program import main, refuses, small_config
from support.runs import assert_same, checkpoint

from configs import load_config
from configs.options import Options
from configs.run_record import RunRecord, as_yaml, read
from runners import doubts
from runners.diffusion import Diffusion
from runners.training.run_folder import compile_choice


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    """A run of two steps in bf16 on a folder of pictures, which is not below --exp."""
    tmp = tmp_path_factory.mktemp("record")
    (tmp / "pictures").mkdir()
    for k in range(6):
        photo(8, 8, seed=k).save(tmp / "pictures" / f"{k}.png")
    changes = dict(data__dataset="FOLDER", data__channels=3, model__in_channels=3, model__out_ch=3)
    config = small_config(tmp / "c.yml", **changes, training__batch_size=4, training__n_iters=2)
    exp = tmp / "E"
    main("--config", config, "--exp", exp, "--doc d --seed 5 --precision bf16 --data", tmp / "pictures")
    return exp, config, tmp / "pictures"


def test_doc_alone_goes_on_as_the_run_was(folder_run, tmp_path):
    exp, config, pictures = folder_run
    more = ("--resume_training", "--set", "training.n_iters=3")
    main("--exp", exp, "--doc", "d", *more)
    whole = ("--exp", tmp_path, "--doc d --seed 5 --precision bf16 --data", pictures)
    main("--config", config, *whole, "--set", "training.n_iters=3")
    assert_same(checkpoint(exp), checkpoint(tmp_path))
    record = read(exp / "logs" / "d")
    assert record == RunRecord("FOLDER", str(pictures), 5, "bf16", "cpu", compiled=False)


def test_a_run_goes_on_by_its_own_record_not_by_that_of_its_first_weights(folder_run, tmp_path):
    exp, config, pictures = folder_run
    main("--config", config, "--exp", tmp_path, "--doc e --data", pictures, "--set training.n_iters=1")
    again = ("--exp", tmp_path, "--doc e --resume_training auto --set training.n_iters=2")
    said = main("--config", config, *again, "--ckpt", exp / "logs" / "d").stderr  # which is in bf16
    assert "continuing after step 1" in said and "float32 on cpu" in said


def test_doc_alone_samples_and_measures(folder_run, tmp_path):
    exp = folder_run[0]
    sampled = ("--sample --fid --num_samples 2 --timesteps 2 -i", tmp_path / "a")
    main("--exp", exp, "--doc", "d", *sampled)
    assert (tmp_path / "a" / "1.png").exists()
    # The reference is looked for where the run's data are, from the checkpoint's path too.
    plan = ("--exp", tmp_path / "other", *sampled, "--metrics fid --plan")
    main("--ckpt", exp / "logs" / "d" / "ckpt.pth", *plan)
    main("--exp", exp, "--doc d --preview -i", tmp_path / "p")
    elsewhere = ("--exp", exp, "--doc d --preview --data", tmp_path / "nothing_here")
    refuses(*elsewhere, says=("nothing_here",), tree=tmp_path)


def test_a_run_that_is_not_there_has_no_config(folder_run, tmp_path):
    refuses("--exp", tmp_path, "--doc", "d", says=("--config is missing",), tree=tmp_path)
    (tmp_path / "logs" / "shapes").mkdir(parents=True)
    misspelt = ("--exp", tmp_path, "--doc shapez --sample --fid")
    says = ("there is no config.yml in", "logs/shapez; did you mean 'shapes'?")
    refuses(*misspelt, says=says, tree=tmp_path)
    run = folder_run[0] / "logs" / "d"  # a run's folder stands for its checkpoint, from Python too
    assert Diffusion.from_pretrained(str(run), device="cpu").config.data.dataset == "FOLDER"


def test_a_damaged_record_is_told(folder_run, tmp_path):
    (tmp_path / "logs" / "d").mkdir(parents=True)
    for text in ("- 1", "{", "seed: x"):
        (tmp_path / "logs" / "d" / "run.yml").write_text(text)
        command = ("--config", folder_run[1], "--exp", tmp_path, "--doc d --sample --fid")
        refuses(*command, says=("run.yml",), tree=tmp_path)


def test_what_was_compiled_is_compiled_again(tmp_path):
    options = Options(exp=str(tmp_path), doc="d")
    options.log_dir.mkdir(parents=True)
    assert compile_choice(options, "cuda") == "auto"
    for compiled, choice in ((True, "on"), (False, "off")):
        record = RunRecord("DIGITS", "/d", 1, "default", "cuda", compiled)
        (options.log_dir / "run.yml").write_text(as_yaml(record))
        assert read(options.log_dir) == record
        assert compile_choice(options, "cuda") == choice
        assert compile_choice(options, "cpu") == "auto"
        assert compile_choice(replace(options, compile="on"), "cuda") == "on"


def test_an_average_or_a_warmup_slower_than_the_run_is_told(tmp_path):
    config = small_config(tmp_path / "c.yml", model__ema_rate=0.9999, training__n_iters=1)
    said = main("--config", config, "--exp", tmp_path, "--doc d").stderr
    assert "model.ema_rate 0.9999 is slow for 1 steps: 100%" in said and "optim.warmup" not in said
    assert "trained to step 1: " in said
    said = main(
        "--config", config, "--exp", tmp_path, "--doc e --set model.ema_warmup=true optim.warmup=1"
    ).stderr
    assert "is slow for" not in said and "optim.warmup is 1 and the run has 1 steps" in said


def test_a_batch_beyond_memory_is_told(caplog):
    config = load_config("ffhq.yml")
    cpu = torch.device("cpu")
    doubts.say_of_training(config, 10**6, 1, cpu, "default")
    assert not caplog.text
    huge = replace(config, training=replace(config.training, batch_size=10**6))
    doubts.say_of_training(huge, 10**6, 10**6, cpu, "default")
    assert "needs at least" in caplog.text and "training.accumulate" in caplog.text


def test_one_step_from_t_0_is_told(run, tmp_path):
    command = ("--exp", run.exp, "--doc d --sample --fid --num_samples 1 --timesteps 1 -i")
    said = main(*command, tmp_path / "a").stderr
    assert "the first step is at t = 0, where ᾱ is 1" in said and "--skip_type trailing" in said
    # small_config's schedule leaves ᾱ 0.35 at T: it is told otherwise.
    assert "the first step" not in main(*command, tmp_path / "b", "--skip_type trailing").stderr


def test_a_schedule_that_leaves_signal_is_told(run, tmp_path):
    sample = ("--sample --fid --num_samples 1 --timesteps 2 --exp", tmp_path, "--doc d")
    said = main("--ckpt", run.exp / "logs" / "d", *sample).stderr
    for text in (run.stderr, said):  # ᾱ is e^-1.05, but for terms in β²
        assert "the schedule leaves signal at its end: ᾱ is 0.35 at the last of 1000" in text


def test_attention_that_no_level_has_is_told(caplog):
    """And nothing is said of DDPM's own schedule and attention."""
    config = load_config("cifar10.yml")
    alphas_cumprod = Diffusion(config, "cpu").alphas_cumprod
    doubts.say(config, alphas_cumprod)
    assert not caplog.text
    doubts.say(replace(config, model=replace(config.model, attn_resolutions=(16, 20))), alphas_cumprod)
    assert "attn_resolutions has 20, and no level" in caplog.text
