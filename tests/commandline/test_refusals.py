"""Bad input: exit code 2, one sentence that names the value and what would be right, nothing written."""

import os
import pickle
import sys

import pytest
import torch
import yaml
from support.program import MAIN, main, refuses, sampling, small_config

SAMPLE = ("--sample", "--fid", "--ckpt", "nowhere.pth")


@pytest.mark.parametrize(
    "text, says",
    [
        ("data: 2024-13-45", ["bad.yml is damaged or not valid YAML", "month"]),
        ("", ["is empty"]),
        ("[1, 2]", ["is a list", "mapping"]),
        ("data: {", ["not valid YAML"]),
        ("data: !!python/object:argparse.Namespace {}", ["line 1", "without Python tags"]),
        ("data: 3\n", ["data must be a mapping"]),
        ("\xff\xfe", ["bad.yml"]),
    ],
)
def test_a_config_that_is_none(tmp_path, text, says):
    (tmp_path / "bad.yml").write_bytes(text.encode("latin1"))
    refuses("--config", "bad.yml", "--doc", "d", says=says, tree=tmp_path, cwd=tmp_path)


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(model__ema_rat=0.9), ["model.ema_rat", "did you mean 'ema_rate'?"]),
        (dict(model__ema_rate=None), ["model.ema_rate is missing"]),
        (dict(optim__lr="1e-4"), ["optim.lr is '1e-4'", "write 0.0001"]),
        (dict(optim__lr=True), ["optim.lr is True", "float"]),
        (dict(optim__lr=-1.0), ["optim.lr is -1.0", "at least 0"]),
        (dict(optim__lr=float("nan")), ["optim.lr is nan", "float32"]),
        (dict(optim__lr="nan"), ["optim.lr is 'nan'", "it must be a float"]),
        (dict(optim__lr=float("inf")), ["optim.lr is inf", "float32"]),
        (dict(optim__lr=10**400), ["optim.lr is 1000", "float32"]),
        (dict(data__channels=3.0), ["data.channels is 3.0", "1, 3"]),
        (
            dict(diffusion__beta_schedule="jsd", diffusion__num_diffusion_timesteps=1),
            ["num_diffusion_timesteps is 1", "jsd"],
        ),
        (dict(optim__optimizer="Adamw"), ["'Adamw'", "Adam, AdamW, RMSProp, SGD"]),
        (dict(training__batch_size=8.0), ["training.batch_size is 8.0", "int"]),
        (dict(training__batch_size=0), ["training.batch_size is 0", "at least 1"]),
        (
            dict(diffusion__num_diffusion_timesteps=0),
            ["diffusion.num_diffusion_timesteps is 0", "at least 1"],
        ),
        (dict(diffusion__beta_schedule="exp"), ["'exp'", "linear"]),
        (dict(diffusion__beta_end=1.0), ["diffusion.beta_end is 1.0", "below 1"]),
        (dict(model__ch=48), ["model.ch is 48", "multiple of 32"]),
        (dict(model__ch_mult=[]), ["model.ch_mult is empty"]),
        (dict(model__ch_mult=2), ["model.ch_mult is 2", "list"]),
        (dict(model__ch_mult=[1, "2"]), ["model.ch_mult[1]", "'2'"]),
        (dict(model__ch_mult=[1, 1, 1, 1, 1]), ["data.image_size is 8", "multiple of 16"]),
        (dict(model__in_channels=3), ["data.channels is 1", "model.in_channels is 3"]),
        (dict(model__out_ch=3), ["model.out_ch is 3"]),
        (dict(data__channels=2), ["data.channels is 2", "1, 3"]),
        (dict(data__dataset="CIFAR"), ["'CIFAR'", "did you mean 'CIFAR10'?"]),
        (dict(data__dataset="LSUN"), ["data.category is missing"]),
        (dict(data__logit_transform=True), ["data.rescaled and data.logit_transform"]),
        (dict(model__type="bayesian"), ["bayesian", "not trained"]),
    ],
)
def test_a_key_that_is_wrong(tmp_path, changes, says):
    config = small_config(tmp_path / "bad.yml", **changes)
    refuses("--config", config, "--exp", tmp_path, "--doc", "d", says=says, tree=tmp_path, fresh=True)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], ["usage: main.py --config FILE", "--help"]),
        (["--doc", "d"], ["--config"]),
        (["--config", "digits.yml", "--doc", "d", "--n_iters", "9"], ["--set training.n_iters=…"]),
        (["--config", "cifar01.yml", "--doc", "d"], ["'cifar01.yml'", "did you mean 'cifar10.yml'?"]),
        (["--config", "digits.yml"], ["--doc is missing"]),
        (["--config", "digits.yml", "--doc", ""], ["--doc is ''"]),
        (
            ["--config", "digits.yml", "--doc", "d", "--timestep", "3"],
            ["--timestep", "did you mean '--timesteps'?"],
        ),
        (["--config", "digits.yml", "--doc", "d", "stray"], ["stray"]),
        (["--config", "digits.yml", "--doc", "d", "--sample"], ["--sample", "--fid", "none given"]),
        (
            ["--config", "digits.yml", "--doc", "d", "--sample", "--fid", "--sequence"],
            ["--fid and --sequence given"],
        ),
        (["--config", "digits.yml", "--doc", "d", "--fid"], ["--fid goes with --sample"]),
        (
            ["--config", "digits.yml", "--doc", "d", "--num_samples", "3"],
            ["--num_samples goes with --sample --fid"],
        ),
        (
            ["--config", "digits.yml", "--doc", "d", "--sample", "--sequence", "--batch_size", "3"],
            ["--batch_size goes with"],
        ),
        (["--config", "digits.yml", "--preview", "--ckpt", "a.pth"], ["--ckpt goes with"]),
        (["--config", "digits.yml", "--doc", "d", "--ckpt", "a.pth"], ["no checkpoint at a.pth"]),
        (["--config", "digits.yml", "--ckpt", "a.pth"], ["--doc is missing"]),
        (["--doc", "d", "--ckpt", "a.pth"], ["--config is missing", "--ckpt"]),
        (["--config", "digits.yml", "--doc", "d", "--weights", "raw"], ["--weights goes with --ckpt"]),
        (
            ["--config", "digits.yml", "--doc", "d", "--ckpt", "a.pth", "--resume_training"],
            ["takes no --ckpt", "auto"],
        ),
        (
            ["--config", "digits.yml", "--doc", "d", "--test", "--resume_training"],
            ["--test and --resume_training"],
        ),
        (["--config", "digits.yml", "--doc", "d", "--resume_training", "maybe"], ["maybe", "auto"]),
        (["--config", "digits.yml", *SAMPLE, "--use_pretrained"], ["--ckpt and --use_pretrained"]),
        (["--config", "digits.yml", *SAMPLE, "--num_samples", "0"], ["--num_samples is 0"]),
        (["--config", "digits.yml", *SAMPLE, "--batch_size", "-1"], ["--batch_size is -1"]),
        (["--config", "digits.yml", *SAMPLE, "--timesteps", "0"], ["--timesteps is 0"]),
        (["--config", "digits.yml", *SAMPLE, "--timesteps", "ten"], ["--timesteps", "ten"]),
        (["--config", "digits.yml", *SAMPLE, "--timesteps", "1001"], ["--timesteps is 1001", "at most 1000"]),
        (["--config", "digits.yml", *SAMPLE, "--eta", "1.5"], ["--eta is 1.5", "from 0"]),
        (["--config", "digits.yml", *SAMPLE, "--eta", "-0.1"], ["--eta"]),
        (["--config", "digits.yml", *SAMPLE, "--eta", "nan"], ["--eta is nan"]),
        (["--config", "digits.yml", *SAMPLE, "--seed", "4294967296"], ["4294967296", "4294967295"]),
        (["--config", "digits.yml", *SAMPLE, "--seed", "-1"], ["-1"]),
        (["--config", "digits.yml", *SAMPLE, "--sample_type", "ddim"], ["that is generalized with --eta 0"]),
        (["--config", "digits.yml", *SAMPLE, "--sample_type", "unipcc"], ["did you mean 'unipc'?"]),
        (["--config", "digits.yml", *SAMPLE, "--fid", "4"], ["--num_samples 4"]),
        (["--config", "digits.yml", *SAMPLE, "--exp", "e" * 300], ["cannot be the name of a file"]),
        (["--config", "digit.yml"], ["did you mean 'digits.yml'?"]),
        (["--config", "digits.yml", *SAMPLE, "--skip_type", "cubic"], ["cubic", "quad"]),
        (["--config", "digits.yml", *SAMPLE, "--device", "gpu"], ["'gpu'", "cuda"]),
        (["--config", "digits.yml", *SAMPLE, "-i", ".."], ["--image_folder"]),
        (["--config", "digits.yml", *SAMPLE, "--exp", MAIN], ["main.py is a file", "--exp"]),
        (["--config", "digits.yml", "--exp", MAIN, "--doc", "d"], ["main.py is a file", "--doc"]),
        (["--config", 300 * "a", "--doc", "d"], ["no config", "digits.yml"]),
        (["--config", "digits.yml", *SAMPLE], ["no checkpoint at nowhere.pth"]),
        (
            ["--config", "digits.yml", "--doc", "d", "--sample", "--fid"],
            ["no checkpoint at exp/logs/d/ckpt.pth"],
        ),
        (["--config", "digits.yml", "--doc", "d", "--resume_training"], ["no run to continue", "auto"]),
        (["--config", "digits.yml", "--doc", "d", "--device", "cuda:99"], ["cuda:99"]),
        (
            ["--config", "digits.yml", "--use_pretrained", "--sample", "--fid"],
            ["DIGITS", "CIFAR10", "--ckpt"],
        ),
        (["--config", "digits.yml", "--preview", "--test"], ["--test and --preview"]),
        (["--config", "ffhq.yml", "--doc", "d"], ["FFHQ is not in exp/datasets/FFHQ", "datasets.pack"]),
    ],
)
def test_arguments_that_are_wrong(tmp_path, arguments, says):
    # Most of these are refused before torch is imported.
    quick = "nowhere.pth" in arguments or len(arguments) < 6
    refuses(*arguments, says=says, tree=tmp_path, cwd=tmp_path, fresh=quick, python=sys.executable)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_checkpoints_that_are_wrong(tmp_path, run):
    """Missing parts, other shapes, other contents, and code, each named; the code is not run."""
    good = torch.load(run.ckpt, weights_only=True)["model"]
    first = next(iter(good))
    other = dict(good) | {"conv_in.weight": torch.zeros(64, 1, 3, 3)}
    contents = {
        "other.pth": (other, ["conv_in.weight", "(64, 1, 3, 3)", "(32, 1, 3, 3)"]),
        "lacking.pth": ({k: v for k, v in good.items() if k != first}, [f"no parameter {first}"]),
        "more.pth": (dict(good) | {"extra": torch.zeros(3)}, ["extra (3,)"]),
        "number.pth": (7, ["holds a int"]),
        "list.pth": ([good, {}, 0], ["holds a list", "upstream's list"]),
        "malicious.pth": ([Malicious(), {}, 0, 0], ["holds code", "system", "not run"]),
    }
    for name, (content, _) in contents.items():
        torch.save(content, tmp_path / name)
    contents["legacy.pth"] = (None, ["holds code", "system"])
    (tmp_path / "legacy.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    contents["cut.pth"] = (None, ["damaged"])
    torch.save(good, tmp_path / "cut.pth")
    truncated(tmp_path / "cut.pth")
    contents["numbers.pth"] = ({0: torch.zeros(3)}, ["holds a dict"])
    torch.save(contents["numbers.pth"][0], tmp_path / "numbers.pth")
    torch.save(good, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pth").read_bytes()
    for size in (5, 100, 1000, len(old) // 2, len(old) - 1):
        contents[f"old{size}.pth"] = (None, ["damaged or not a checkpoint"])
        (tmp_path / f"old{size}.pth").write_bytes(old[:size])
    contents["text.pth"] = (None, ["is a text file, not a checkpoint"])
    (tmp_path / "text.pth").write_text("hello")
    contents["empty.pth"] = (None, ["is damaged: it is empty"])
    (tmp_path / "empty.pth").touch()
    for name, (_, says) in contents.items():
        sample = ("--config", run.config, "--ckpt", name, "--sample", "--fid", "--num_samples", 1)
        fresh = name in ("malicious.pth", "cut.pth")
        refuses(*sample, says=(name, *says), tree=tmp_path, cwd=tmp_path, fresh=fresh)
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_not_there(tmp_path, run):
    torch.save(torch.load(run.ckpt, weights_only=True)["model"], tmp_path / "bare.pth")
    sample = ("--config", run.config, "--exp", tmp_path, "--ckpt", tmp_path / "bare.pth")
    refuses(*sample, "--sample", "--fid", "--weights", "ema", says=("no EMA", "--weights raw"), tree=tmp_path)


@pytest.mark.skipif(not os.path.isdir("/sys"), reason="needs a folder in which root cannot write either")
def test_a_folder_that_cannot_be_written(tmp_path):
    command = ("--config", "digits.yml", "--exp", "/sys/ddim", "--doc", "d", "--ni")
    refuses(*command, says=("/sys/ddim", "cannot be used", "--exp"), tree=tmp_path)


def test_a_schedule_that_cannot_be_sampled_from_its_end(tmp_path, run):
    tree = yaml.safe_load(run.config.read_text())
    tree["diffusion"]["beta_schedule"] = "jsd"
    (tmp_path / "jsd.yml").write_text(yaml.safe_dump(tree))
    sample = sampling(tmp_path / "jsd.yml", run.ckpt, tmp_path, "--num_samples", 1)
    refuses(*sample, says=("t = 999", "jsd", "fewer"), tree=tmp_path)
    main(*sample, "--timesteps", 10)


def test_help_tells_of_every_task():
    said = main("--help", fresh=True, python=sys.executable).stdout
    for flag in ("--resume_training", "--fid", "--interpolation", "--sequence", "--use_pretrained", "--test"):
        assert flag in said
    assert "ddpm_noisy" in said


def test_debug_shows_the_traceback(tmp_path):
    process = main("--config", "digits.yml", "--exp", tmp_path, *SAMPLE, "--verbose", "debug", code=2)
    assert "Traceback" in process.stderr and "no checkpoint at nowhere.pth" in process.stderr
