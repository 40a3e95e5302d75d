"""Weights in every format give back the same bits; an export is checked, and leaves nothing half-made."""

import re

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from support.program import main, refuses, small_config

from configs import load_config
from functions.weights import load_checkpoint, storage, weights_hash
from runners.diffusion import build_unet


def test_every_format_gives_back_the_same_bits(tmp_path, run):
    """A chain through all of them; the EMA goes on where a format holds one set."""
    own = load_checkpoint(run.ckpt)
    config = ("--config", run.config)
    main(*config, "--ckpt", run.ckpt, "--export", tmp_path / "a.pth", fresh=True)
    main(*config, "--ckpt", tmp_path / "a.pth", "--export", tmp_path / "b")
    main("--ckpt", tmp_path / "b", "--export", tmp_path / "c.safetensors")
    main(*config, "--ckpt", tmp_path / "c.safetensors", "--export", tmp_path / "d.pth")
    main(*config, "--ckpt", run.ckpt, "--weights", "raw", "--export", tmp_path / "e")

    a, d = load_checkpoint(tmp_path / "a.pth"), load_checkpoint(tmp_path / "d.pth")
    assert (a.step, a.epoch) == (own.step, own.epoch) and str(a.optimizer) == str(own.optimizer)
    pairs = [(a.model, own.model), (a.ema, own.ema), (d.model, own.ema), (d.ema, own.ema)]
    pairs += [(load_checkpoint(tmp_path / name).model, own.ema) for name in ("b", "c.safetensors")]
    pairs += [(load_checkpoint(tmp_path / "e").model, own.model)]
    for weights, expected in pairs:
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)

    sample = ("--exp", tmp_path, "--sample", "--fid", "--num_samples", 3, "--timesteps", 3)
    main(*config, "--ckpt", run.ckpt, *sample)
    for name in ("a.pth", "b", "c.safetensors", "d.pth"):
        assert "0 images to make" in main(*config, "--ckpt", tmp_path / name, *sample).stderr
    assert "0 images to make" in main("--ckpt", tmp_path / "b", *sample).stderr


def test_upstreams_program_can_load_an_exported_list(tmp_path, run):
    """What its sampling and resuming do with the file, line by line. Also without an optimizer."""
    torch.save(load_checkpoint(run.ckpt).ema, tmp_path / "bare.pth")
    for source, optimizer in ((run.ckpt, True), (tmp_path / "bare.pth", False)):
        path = tmp_path / f"{optimizer}.pth"
        main("--config", run.config, "--ckpt", source, "--export", path)
        states = torch.load(path, weights_only=True)
        model = torch.nn.DataParallel(build_unet(load_config(str(run.config))))
        model.load_state_dict(states[0], strict=True)
        adam = torch.optim.Adam(model.parameters())
        states[1]["param_groups"][0]["eps"] = 1e-8
        adam.load_state_dict(states[1])
        assert bool(adam.state) == optimizer
        assert (states[2], states[3]) == ((1, 4) if optimizer else (0, 0))
        for name, param in model.module.named_parameters():
            param.data.copy_(states[-1][name].data)
        assert weights_hash(model.module.state_dict()) == weights_hash(load_checkpoint(run.ckpt).ema)


def test_a_config_without_an_average_exports_a_list_of_four(tmp_path, run):
    config = small_config(tmp_path / "c.yml", model__ema=False)
    torch.save(load_checkpoint(run.ckpt).model, tmp_path / "bare.pth")
    main("--config", config, "--ckpt", tmp_path / "bare.pth", "--export", tmp_path / "four.pth")
    assert len(torch.load(tmp_path / "four.pth", weights_only=True)) == 4


def test_an_exported_list_resumes(tmp_path, run):
    config = small_config(tmp_path / "c.yml", training__n_iters=5)
    main("--config", run.config, "--ckpt", run.ckpt, "--export", tmp_path / "logs" / "d" / "ckpt.pth")
    said = main("--config", config, "--exp", tmp_path, "--doc", "d", "--resume_training").stderr
    assert "continuing after step 4 to step 5" in said


def test_half_precision_halves_the_file_and_is_what_numpy_rounds_to(tmp_path, run):
    base = ("--config", run.config, "--ckpt", run.ckpt, "--export")
    said = main(*base, tmp_path / "w.fp16.safetensors").stdout
    main(*base, tmp_path / "w.safetensors")
    assert "half precision" in said and 0 < float(re.search(r"differs by at most (\S+)", said)[1]) < 0.01
    half, full = load_file(tmp_path / "w.fp16.safetensors"), load_file(tmp_path / "w.safetensors")
    for name, value in full.items():
        assert np.array_equal(half[name].numpy(), value.numpy().astype(np.float16)), name
    assert (tmp_path / "w.fp16.safetensors").stat().st_size < 0.6 * (
        tmp_path / "w.safetensors"
    ).stat().st_size
    sample = ("--exp", tmp_path, "--sample", "--fid", "--num_samples", 2, "--timesteps", 3)
    main("--config", run.config, "--ckpt", tmp_path / "w.fp16.safetensors", *sample)

    huge = full | {"conv_in.bias": torch.full_like(full["conv_in.bias"], 1e5)}
    torch.save(huge, tmp_path / "huge.pth")
    command = ("--config", run.config, "--ckpt", tmp_path / "huge.pth", "--export")
    refuses(
        *command,
        tmp_path / "h.fp16.safetensors",
        says=["conv_in.bias", "half precision", ".fp16"],
        tree=tmp_path,
    )


def test_an_export_that_cannot_be_is_refused_and_writes_nothing(tmp_path, run):
    (tmp_path / "there").mkdir()
    (tmp_path / "there.pth").touch()
    own = yaml.safe_load(run.config.read_text())
    base = ("--config", run.config, "--ckpt", run.ckpt)
    cases = [
        ((*base, "--export", ""), ["--export is ''"]),
        (("--inspect", ""), ["--inspect is ''"]),
        ((*base, "--export", tmp_path / "there"), ["exists already", "nothing is overwritten"]),
        ((*base, "--export", tmp_path / "there.pth"), ["exists already"]),
        ((*base, "--export", tmp_path / "new.ckpt"), ["new.ckpt", ".pth", ".safetensors"]),
        ((*base, "--export", tmp_path / "new.pth", "--weights", "raw"), ["--weights", "both"]),
        ((*base, "--export", tmp_path / "new", "--sample", "--fid"), ["--sample and --export are two tasks"]),
        (("--config", run.config, "--export", tmp_path / "new"), ["--doc is missing"]),
        (
            ("--config", run.config, "--ckpt", tmp_path / "no", "--export", tmp_path / "new"),
            ["no checkpoint at"],
        ),
    ]
    for section, key, value, says in (
        ("model", "type", "bayesian", "model.type bayesian"),
        ("model", "ch_mult", [2], "model.ch_mult beginning with 2"),
        ("data", "rescaled", False, "data.rescaled false"),
    ):
        path = tmp_path / f"{key}.yml"
        path.write_text(yaml.safe_dump(own | {section: own[section] | {key: value}}))
        cases.append(
            (("--config", path, "--ckpt", run.ckpt, "--export", tmp_path / "new"), [says, ".safetensors"])
        )
    pooled = own["model"] | {"ch_mult": [1, 1], "resamp_with_conv": False}
    (tmp_path / "pooled.yml").write_text(yaml.safe_dump(own | {"model": pooled}))
    arguments = ("--config", tmp_path / "pooled.yml", "--ckpt", run.ckpt, "--export", tmp_path / "new")
    cases.append((arguments, ["model.resamp_with_conv false"]))
    for arguments, says in cases:
        refuses(*arguments, says=says, tree=tmp_path)


def test_an_export_that_fails_leaves_no_half_folder(tmp_path, run, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(storage, "save_safetensors", fail)
    command = ("--config", run.config, "--ckpt", run.ckpt, "--export")
    refuses(*command, tmp_path / "new", says=["no space left"], code=1, tree=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_came_out_wrong_is_told_by_its_forward_pass(tmp_path, run, monkeypatch):
    right = storage.save_safetensors
    wrong = lambda path, weights: right(path, {name: 2 * value for name, value in weights.items()})  # noqa: E731
    monkeypatch.setattr(storage, "save_safetensors", wrong)
    said = main("--config", run.config, "--ckpt", run.ckpt, "--export", tmp_path / "w.safetensors").stdout
    assert float(re.search(r"differs by at most (\S+)", said)[1]) > 0.01
