"""Weights in every format: read, written, exported, inspected, and held against diffusers itself."""

import json
import os
import re
import shutil
import socket
from dataclasses import replace

import diffusers as reference
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, main, refuses, small_config
from PIL import Image
from safetensors.torch import load_file, save_file

from configs import CONFIG_DIR, load_config, to_yaml
from functions.noise import initial_noise
from functions.schedules import alphas_cumprod, betas
from functions.weights import diffusers, diffusers_config, load_checkpoint, pretrained, storage, weights_hash
from functions.weights.architecture import infer
from runners.diffusion import Diffusion, build_unet

OLD_SPELLING = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def unet2d(size: int, widths: list[int], attention: int | None, **changes) -> reference.UNet2DModel:
    """diffusers' own network, randomly initialised, with attention at one level that is far from uniform."""
    down, up = len(widths) * ["DownBlock2D"], len(widths) * ["UpBlock2D"]
    if attention is not None:
        down[attention], up[-1 - attention] = "AttnDownBlock2D", "AttnUpBlock2D"
    torch.manual_seed(0)
    arguments = {
        "sample_size": size, "block_out_channels": widths, "down_block_types": down, "up_block_types": up,
        "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "attention_head_dim": None,
    }  # fmt: skip
    model = reference.UNet2DModel(**{**arguments, **changes}).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "to_q.weight" in name or "to_k.weight" in name:
                value.mul_(3)
    return model


def pipeline(folder, unet=None, **scheduler):
    """A small pipeline's folder, as diffusers writes it."""
    scheduler = {"beta_end": 0.002, **scheduler}
    unet = unet or unet2d(16, [32, 64], 1)
    reference.DDPMPipeline(unet, reference.DDPMScheduler(**scheduler)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """For reading only."""
    return pipeline(tmp_path_factory.mktemp("pipe") / "pipe", variance_type="fixed_large")


def edit(path, **changes):
    """Change a JSON file's keys; ... removes one."""
    content = {
        key: value for key, value in {**json.loads(path.read_text()), **changes}.items() if value is not ...
    }
    path.write_text(json.dumps(content))


def spell_as_old(folder):
    """As the Hub's older folders: all files beside one another, attention in the old spelling, a pickle."""
    for path in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
        path.rename(folder / path.name)
    for name in ("unet", "scheduler"):
        (folder / name).rmdir()
    weights = load_file(folder / diffusers.SAFETENSORS)
    renamed = {
        re.sub(r"to_q|to_k|to_v|to_out\.0", lambda m: OLD_SPELLING[m[0]], name): v
        for name, v in weights.items()
    }
    assert len(renamed.keys() - weights.keys()) >= 8
    (folder / diffusers.SAFETENSORS).unlink()
    torch.save(renamed, folder / diffusers.BIN)


@pytest.mark.parametrize(
    "name, ch, attention", [("cifar10.yml", 128, 1), ("celeba.yml", 32, 2), ("church.yml", 32, 4)]
)
def test_diffusers_networks_compute_the_same_here(tmp_path, name, ch, attention):
    """The published architectures, in both spellings of attention; the larger ones narrower."""
    config = load_config(name)
    config = replace(config, model=replace(config.model, ch=ch))
    size = config.data.image_size
    unet = unet2d(size, [ch * mult for mult in config.model.ch_mult], attention)
    x, t = initial_noise(0, [0], (3, size, size)), torch.tensor([500])
    with torch.no_grad():
        expected = unet(x, t).sample
    folder = pipeline(tmp_path / "pipe", unet, beta_end=0.02)
    for spelling in ("new", "old"):
        if spelling == "old":
            spell_as_old(folder)
        diffusion = Diffusion.from_pretrained(str(folder), device="cpu")
        with torch.no_grad():
            assert (diffusion.model(x, t) - expected).abs().max() < 1e-4 * expected.std().clamp(max=1)
        own = diffusion.config
        assert own.model == replace(
            config.model, dropout=0.0, var_type="fixedsmall", ema_rate=own.model.ema_rate
        )
        assert own.diffusion == config.diffusion
        Diffusion.from_pretrained(str(folder), config, device="cpu")


def test_the_steps_are_ddim_schedulers_through_the_exported_folder(tmp_path):
    """Same x_T, diffusers' network and scheduler against --sample: one grey level at most."""
    source = pipeline(tmp_path / "source", unet2d(8, [32, 64], 1))
    for schedule in ("linear", "quad"):
        config = load_folder_as(source, tmp_path / f"{schedule}.yml", schedule)
        torch.save(load_checkpoint(source).model, tmp_path / "w.pth")
        command = ("--config", config, "--exp", tmp_path, "--ckpt", tmp_path / "w.pth")
        folder = tmp_path / schedule
        assert re.search(r"differs by at most 0\b", main(*command, "--export", folder).stdout)
        exported = reference.DDIMPipeline.from_pretrained(folder)
        assert (exported.scheduler.config.trained_betas is None) == (schedule == "linear")
        ours = alphas_cumprod(betas(load_config(str(config)).diffusion))[1:]
        torch.testing.assert_close(exported.scheduler.alphas_cumprod, ours)
        assert exported.scheduler.final_alpha_cumprod == 1
        for S in (10, 50):
            exported.scheduler.set_timesteps(S)
            x = initial_noise(1234, range(2), (3, 8, 8))
            with torch.no_grad():
                for t in exported.scheduler.timesteps:
                    x = exported.scheduler.step(exported.unet(x, t).sample, t, x, eta=0.0).prev_sample
            expected = np.round(255 * (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())
            assert expected.std() > 10 and np.mean((expected > 0) & (expected < 255)) > 0.2
            main(*command, "--sample", "--fid", "--num_samples", 2, "--timesteps", S, "-i", f"{schedule}{S}")
            ours = [
                np.asarray(Image.open(tmp_path / "image_samples" / f"{schedule}{S}" / f"{i}.png"), float)
                for i in (0, 1)
            ]
            assert np.abs(ours - expected).max() <= 1


def load_folder_as(folder, path, schedule):
    """The folder's own config, with another schedule, as YAML."""
    config = diffusers_config.read(folder)
    path.write_text(to_yaml(replace(config, diffusion=replace(config.diffusion, beta_schedule=schedule))))
    return path


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
    """What its sampling and its resuming do with the file, line by line; also from weights that had no optimizer."""
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


@pytest.mark.parametrize("schedule", ["linear", "quad", "const", "jsd", "sigmoid"])
def test_a_schedule_survives_a_folder(tmp_path, pipe, schedule):
    config = diffusers_config.read(pipe)
    config = replace(config, diffusion=replace(config.diffusion, beta_schedule=schedule))
    diffusers.save(tmp_path / "out", load_checkpoint(pipe).model, config)
    assert diffusers_config.read(tmp_path / "out") == config
    scheduler = reference.DDIMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    torch.testing.assert_close(
        scheduler.alphas_cumprod, alphas_cumprod(betas(config.diffusion))[1:], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    "theirs, ours",
    [
        (dict(beta_schedule="scaled_linear"), "quad"),
        (dict(beta_schedule="sigmoid"), "sigmoid"),
        (dict(trained_betas=np.linspace(0.001, 0.01, 100).tolist(), num_train_timesteps=100), "linear"),
    ],
)
def test_diffusers_schedules_are_read(tmp_path, theirs, ours):
    config = diffusers_config.read(pipeline(tmp_path / "p", **theirs))
    assert config.diffusion.beta_schedule == ours
    expected = reference.DDPMScheduler.from_pretrained(tmp_path / "p" / "scheduler").alphas_cumprod
    torch.testing.assert_close(alphas_cumprod(betas(config.diffusion))[1:], expected, rtol=1e-4, atol=0)


def test_a_key_that_diffusers_ignores_is_ignored_and_named(tmp_path, pipe):
    folder = shutil.copytree(pipe, tmp_path / "p")
    edit(folder / "unet" / "config.json", num_head_channels=7)
    assert (
        "num_head_channels" in main("--inspect", folder).stderr
        and "ignored" not in main("--inspect", pipe).stderr
    )
    assert diffusers_config.read(folder) == diffusers_config.read(pipe)
    assert diffusers_config.read(pipe).model.var_type == "fixedlarge"


def test_attention_as_wide_as_its_channels_has_one_head(tmp_path):
    """attention_head_dim is a head's width: where all attention is as wide, it is the same as null."""
    unet = unet2d(16, [32, 64, 64], 1, attention_head_dim=64)
    diffusion = Diffusion.from_pretrained(str(pipeline(tmp_path / "p", unet)), device="cpu")
    x, t = initial_noise(0, [0], (3, 16, 16)), torch.tensor([500])
    with torch.no_grad():
        assert (diffusion.model(x, t) - unet(x, t).sample).abs().max() < 1e-4


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(attention_head_dim=...), ["attention_head_dim is 8", "omitted", "null"]),
        (dict(attention_head_dim=8), ["attention_head_dim is 8;"]),
        (dict(downsample_padding=...), ["downsample_padding is 1", "omitted"]),
        (dict(flip_sin_to_cos=...), ["flip_sin_to_cos is true", "omitted"]),
        (dict(freq_shift=0), ["freq_shift is 0"]),
        (dict(norm_eps=1e-5), ["norm_eps is 1e-05"]),
        (dict(norm_num_groups=16), ["norm_num_groups is 16"]),
        (dict(act_fn="mish"), ['act_fn is "mish"', '"silu" or "swish"']),
        (dict(center_input_sample=True), ["center_input_sample is true"]),
        (dict(class_embed_type="timestep"), ["class_embed_type"]),
        (dict(num_class_embeds=10), ["num_class_embeds is 10"]),
        (dict(add_attention=False), ["add_attention is false"]),
        (dict(mid_block_type=None), ["mid_block_type is null"]),
        (dict(resnet_time_scale_shift="scale_shift"), ["resnet_time_scale_shift"]),
        (dict(downsample_type="resnet"), ["downsample_type"]),
        (dict(time_embedding_type="fourier"), ["time_embedding_type"]),
        (dict(time_embedding_dim=64), ["time_embedding_dim is 64", "128"]),
        (dict(down_block_types=["DownBlock2D", "SkipDownBlock2D"]), ["down_block_types", "SkipDownBlock2D"]),
        (dict(up_block_types=["UpBlock2D", "UpBlock2D"]), ["up_block_types", "same levels"]),
        (dict(up_block_types=["UpBlock2D"]), ["up_block_types", "2 entries"]),
        (dict(block_out_channels=[32, 48]), ["block_out_channels", "multiple of the first"]),
        (dict(block_out_channels=[48, 96]), ["model.ch is 48"]),
        (dict(in_channels=4), ["data.channels is 4"]),
        (dict(out_channels=6), ["model.out_ch is 6"]),
        (dict(sample_size=None), ["sample_size is None"]),
        (dict(sample_size=[16, 32]), ["sample_size is [16, 32]"]),
        (dict(sample_size=15), ["data.image_size is 15"]),
        (dict(_class_name="UNet2DConditionModel"), ["UNet2DConditionModel", "UNet2DModel"]),
    ],
)
def test_a_network_with_more_than_ours_is_refused_by_name(tmp_path, pipe, changes, says):
    folder = shutil.copytree(pipe, tmp_path / "p")
    edit(folder / "unet" / "config.json", **changes)
    with pytest.raises(ValueError) as error:
        diffusers_config.read(folder)
    for words in [str(folder), *says]:
        assert words in str(error.value)
    if "attention_head_dim" in changes:
        refuses("--ckpt", folder, "--exp", tmp_path, "--sample", "--fid", says=says, tree=tmp_path)


@pytest.mark.parametrize(
    "file, changes, says",
    [
        (
            "scheduler/scheduler_config.json",
            dict(prediction_type="v_prediction"),
            ["prediction_type", "v_prediction", "epsilon"],
        ),
        ("scheduler/scheduler_config.json", dict(rescale_betas_zero_snr=True), ["rescale_betas_zero_snr"]),
        ("scheduler/scheduler_config.json", dict(variance_type="learned_range"), ["variance_type"]),
        (
            "scheduler/scheduler_config.json",
            dict(beta_schedule="squaredcos_cap_v2"),
            ["beta_schedule", "squaredcos_cap_v2"],
        ),
        ("scheduler/scheduler_config.json", dict(trained_betas=[0.1, 0.2]), ["trained_betas", "1000"]),
        (
            "scheduler/scheduler_config.json",
            dict(trained_betas=[0.1, 0.3, 0.2] + 997 * [0.5]),
            ["trained_betas", "schedules"],
        ),
        ("scheduler/scheduler_config.json", dict(beta_end="much"), ["beta_end is 'much'"]),
        (
            "scheduler/scheduler_config.json",
            dict(_class_name="FlowMatchEulerDiscreteScheduler"),
            ["FlowMatch", "DDIMScheduler"],
        ),
        ("model_index.json", dict(_class_name="LDMPipeline"), ["LDMPipeline", "DDPMPipeline"]),
    ],
)
def test_a_pipeline_with_more_than_ours_is_refused_by_name(tmp_path, pipe, file, changes, says):
    folder = shutil.copytree(pipe, tmp_path / "p")
    edit(folder / file, **changes)
    with pytest.raises(ValueError) as error:
        diffusers_config.read(folder)
    for words in [str(folder / file), *says]:
        assert words in str(error.value)


@pytest.mark.parametrize("text, says", [("{", "not valid JSON"), ("[]", "holds a list")])
def test_json_that_is_none_is_refused(tmp_path, pipe, text, says):
    folder = shutil.copytree(pipe, tmp_path / "p")
    (folder / "unet" / "config.json").write_text(text)
    refuses(
        "--ckpt", folder, "--exp", tmp_path, "--sample", "--fid", says=("config.json", says), tree=tmp_path
    )


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_weights_that_do_not_fit_their_folder_are_refused_by_name(tmp_path, pipe):
    """Missing, strange and misshapen parameters, no weights, code (not run), a cut file, and the bare file without its folder."""
    good = load_file(pipe / "unet" / diffusers.SAFETENSORS)
    lacking = {name: value for name, value in good.items() if name != "mid_block.attentions.0.to_q.weight"}
    cut = (pipe / "unet" / diffusers.SAFETENSORS).read_bytes()[:-10]
    cases = {
        "lacking": (
            lambda unet: save_file(lacking, unet / diffusers.SAFETENSORS),
            ["mid.attn_1.q.weight (64, 64, 1, 1)"],
        ),
        "strange": (
            lambda unet: save_file(
                good | {"class_embedding.weight": torch.zeros(3)}, unet / diffusers.SAFETENSORS
            ),
            ["class_embedding.weight (3,)"],
        ),
        "misshapen": (
            lambda unet: save_file(
                good | {"conv_in.weight": torch.zeros(64, 3, 3, 3)}, unet / diffusers.SAFETENSORS
            ),
            ["conv_in.weight", "(64, 3, 3, 3)", "(32, 3, 3, 3)"],
        ),
        "none": (lambda unet: None, ["holds no weights", diffusers.SAFETENSORS, diffusers.BIN]),
        "code": (
            lambda unet: torch.save({"conv_in.weight": Malicious()}, unet / diffusers.BIN),
            ["holds code", "not run"],
        ),
        "cut": (lambda unet: (unet / diffusers.SAFETENSORS).write_bytes(cut), ["damaged"]),
        "list": (lambda unet: torch.save([1], unet / diffusers.BIN), ["holds a list"]),
    }
    for name, (write, says) in cases.items():
        folder = shutil.copytree(pipe, tmp_path / name)
        (folder / "unet" / diffusers.SAFETENSORS).unlink()
        write(folder / "unet")
        sample = ("--ckpt", folder, "--exp", tmp_path, "--sample", "--fid", "--timesteps", 2)
        refuses(*sample, says=(str(folder), *says), tree=tmp_path, cwd=tmp_path, fresh=name == "code")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "config.yml").write_text(to_yaml(diffusers_config.read(pipe)))
    shutil.copy(pipe / "unet" / diffusers.SAFETENSORS, tmp_path / "bare.safetensors")
    refuses(
        "--ckpt", tmp_path / "bare.safetensors", "--exp", tmp_path, "--sample", "--fid",
        says=["diffusers", "name its folder"], tree=tmp_path,
    )  # fmt: skip
    (tmp_path / "cut.safetensors").write_bytes(cut)
    refuses(
        "--ckpt",
        tmp_path / "cut.safetensors",
        "--exp",
        tmp_path,
        "--sample",
        "--fid",
        says=["damaged"],
        tree=tmp_path,
    )


@pytest.mark.parametrize(
    "section, changes, says",
    [
        ("data", dict(image_size=32), ["data.image_size is 16 there and 32"]),
        ("data", dict(rescaled=False), ["data.rescaled is True there and False"]),
        ("model", dict(ch=64), ["model.ch is 32 there and 64"]),
        ("model", dict(ch_mult=(1, 1)), ["model.ch_mult is [1, 2] there and [1, 1]"]),
        ("model", dict(attn_resolutions=(16,)), ["model.attn_resolutions is [8] there and [16]"]),
        ("diffusion", dict(beta_end=0.02), ["linear from 0.0001 to 0.002", "linear from 0.0001 to 0.02"]),
        ("diffusion", dict(beta_schedule="quad"), ["linear from", "quad from"]),
        ("diffusion", dict(num_diffusion_timesteps=100), ["num_diffusion_timesteps is 1000 there and 100"]),
    ],
)
def test_a_folder_is_held_against_the_config(tmp_path, pipe, section, changes, says):
    config = diffusers_config.read(pipe)
    config = replace(config, **{section: replace(getattr(config, section), **changes)})
    with pytest.raises(ValueError) as error:
        Diffusion.from_pretrained(str(pipe), config)
    for words in [str(pipe), *says]:
        assert words in str(error.value)


def test_without_a_config_the_folders_own_serves(tmp_path, pipe):
    main(
        "--ckpt",
        pipe,
        "--exp",
        tmp_path,
        "--sample",
        "--fid",
        "--num_samples",
        2,
        "--timesteps",
        2,
        fresh=True,
    )
    (tmp_path / "c.yml").write_text(to_yaml(diffusers_config.read(pipe)))
    assert load_config(str(tmp_path / "c.yml")) == diffusers_config.read(pipe)
    command = ("--ckpt", pipe, "--exp", tmp_path, "--sample", "--fid", "--num_samples", 2, "--timesteps", 2)
    assert "0 images to make" in main("--config", tmp_path / "c.yml", *command).stderr
    shutil.copytree(pipe / "unet", tmp_path / "alone")
    said = main(
        "--ckpt", tmp_path / "alone", "--exp", tmp_path, "--inspect", tmp_path / "alone", code=2
    ).stderr
    assert "--ckpt goes with" in said
    said = main("--inspect", tmp_path / "alone")
    assert "no scheduler_config.json" in said.stderr and "linear from 0.0001 to 0.02, 1000" in said.stdout


def test_a_runs_own_config_lies_beside_its_checkpoint(tmp_path, run):
    sample = ("--sample", "--fid", "--num_samples", 1, "--timesteps", 1, "--exp", tmp_path)
    main("--ckpt", run.ckpt, *sample)
    shutil.copy(run.ckpt, tmp_path / "alone.pth")
    refuses(
        "--ckpt", tmp_path / "alone.pth", *sample, says=["--config is missing", "alone.pth"], tree=tmp_path
    )
    refuses("--ckpt", tmp_path / "none.pth", *sample, says=["no checkpoint at"], tree=tmp_path)
    refuses("--use_pretrained", *sample, says=["--config is missing"], tree=tmp_path)
    refuses(
        "--ckpt", "ema_cifar01", *sample, says=["ema_cifar01", "did you mean 'ema_cifar10'?"], tree=tmp_path
    )


def test_published_names_know_their_config_and_place(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert len(pretrained.PUBLISHED) == 10
    for name, weights in pretrained.PUBLISHED.items():
        config = pretrained.own_config(name)
        if name in ("celeba", "fashion_mnist") or name.startswith("ema_"):
            assert pretrained.for_data(config.data) is weights
        if name not in ("celeba", "fashion_mnist"):
            raw = name.removeprefix("ema_")
            folder = f"{'ema_' if name != raw else ''}diffusion_{raw}_model"
            assert str(weights.path.parent) == f"/cache/diffusion_models_converted/{folder}"
            assert re.fullmatch(r"https://heibox\.uni-heidelberg\.de/f/[0-9a-f]{20}/\?dl=1", weights.url)
    assert len({weights.md5 for weights in pretrained.PUBLISHED.values()}) == 10
    celeba = load_config("celeba.yml")
    with pytest.raises(ValueError, match=r"image_size is 128.*64"):
        pretrained.for_data(replace(celeba.data, image_size=128))


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
    arguments = (
        "--config",
        run.config,
        "--ckpt",
        tmp_path / "huge.pth",
        "--export",
        tmp_path / "h.fp16.safetensors",
    )
    refuses(*arguments, says=["conv_in.bias", "half precision", ".fp16"], tree=tmp_path)


def test_the_shipped_weights_need_no_network_and_are_small(tmp_path, monkeypatch):
    shipped = pretrained.PUBLISHED["fashion_mnist"]
    assert shipped.path.stat().st_size < 10_000_000 and {
        v.dtype for v in load_file(shipped.path).values()
    } == {torch.float16}
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    sample = ("--exp", tmp_path, "--sample", "--fid", "--num_samples", 2, "--timesteps", 3)
    main("--config", "fashion_mnist.yml", "--use_pretrained", *sample)
    assert "0 images to make" in main("--ckpt", "fashion_mnist", *sample).stderr


def test_shipped_weights_that_are_damaged_or_of_another_network_are_refused(tmp_path, monkeypatch):
    use = ("--use_pretrained", "--exp", tmp_path, "--sample", "--fid")
    tree = yaml.safe_load((ROOT / "configs" / "fashion_mnist.yml").read_text())
    tree["model"]["ch"] = 64
    (tmp_path / "wide.yml").write_text(yaml.safe_dump(tree))
    refuses(
        "--config",
        tmp_path / "wide.yml",
        *use,
        says=["does not fit the config", "(128, 32)", "(256, 64)"],
        tree=tmp_path,
    )
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path)
    refuses(
        "--config",
        "fashion_mnist.yml",
        *use,
        says=["fashion_mnist.fp16.safetensors is missing", "git checkout"],
        tree=tmp_path,
    )
    (tmp_path / "fashion_mnist.fp16.safetensors").write_bytes(b"damaged")
    refuses(
        "--config", "fashion_mnist.yml", *use, says=["does not have its md5", "git checkout"], tree=tmp_path
    )


def test_an_export_that_cannot_be_is_refused_and_writes_nothing(tmp_path, run):
    (tmp_path / "there").mkdir()
    (tmp_path / "there.pth").touch()
    own = yaml.safe_load(run.config.read_text())
    base = ("--config", run.config, "--ckpt", run.ckpt)
    cases = [
        ((*base, "--export", ""), ["--export is ''"]),
        (("--inspect", ""), ["--inspect is ''"]),
        ((*base, "--export", tmp_path / "there"), ["is there already", "nothing is overwritten"]),
        ((*base, "--export", tmp_path / "there.pth"), ["is there already"]),
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


def test_inspect_tells_what_each_format_holds(tmp_path, run):
    own = load_checkpoint(run.ckpt)
    difference = max((own.model[name] - own.ema[name]).abs().max().item() for name in own.ema)
    raw, ema = weights_hash(own.model), weights_hash(own.ema)
    parameters = f"{sum(p.numel() for p in build_unet(load_config(str(run.config))).parameters()):,}"
    said = main("--inspect", run.ckpt, "--config", run.config, fresh=True).stdout
    for words in (
        "format: this program's checkpoint", "ch 32", "ch_mult [1]", "num_res_blocks 1", "attention at level none",
        f"parameters: {parameters}", f"differ by up to {difference:g}, in ", f"hash (raw): {raw}", f"hash (EMA): {ema}",
        "step 4, epoch 1, an optimizer with its state", "fits: no shipped config", f"{run.config}: fits",
    ):  # fmt: skip
        assert words in said
    main(
        "--config",
        run.config,
        "--ckpt",
        run.ckpt,
        "--exp",
        tmp_path,
        "--sample",
        "--fid",
        "--num_samples",
        1,
        "--timesteps",
        1,
    )
    assert (
        json.loads((tmp_path / "image_samples" / "images" / "manifest.json").read_text())["decides"][
            "weights"
        ]
        == ema
    )

    formats = {
        "list.pth": "upstream's list of 5",
        "f.safetensors": "a safetensors file",
        "folder": "a diffusers DDIMPipeline folder",
    }
    for name, words in formats.items():
        main("--config", run.config, "--ckpt", run.ckpt, "--export", tmp_path / name)
        said = main("--inspect", tmp_path / name).stdout
        assert f"format: {words}" in said and ema in said and parameters in said
    torch.save(own.ema, tmp_path / "bare.pth")
    said = main("--inspect", tmp_path / "bare.pth").stdout
    assert "a bare state dict" in said and "one set" in said and "training cannot continue" in said
    torch.save([own.model, own.optimizer, 1, 4, own.model], tmp_path / "same.pth")
    assert "they are equal" in main("--inspect", tmp_path / "same.pth").stdout


def test_inspect_says_which_configs_fit_and_why_one_does_not(tmp_path, run):
    torch.save(build_unet(load_config("digits.yml")).state_dict(), tmp_path / "digits.pth")
    said = main("--inspect", tmp_path / "digits.pth", "--config", run.config).stdout
    assert (
        "fits: digits.yml\n" in said
        and f"{run.config}: {tmp_path / 'digits.pth'} does not fit the config: mid." in said
    )
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    refuses(
        "--inspect",
        tmp_path / "other.pth",
        says=["conv_in.weight", "no network of this program's"],
        tree=tmp_path,
    )


def test_inspect_recognises_a_published_file_by_its_md5(tmp_path, run, monkeypatch):
    torch.save(load_checkpoint(run.ckpt).ema, tmp_path / "w.ckpt")
    md5 = re.search(r"^md5: (\w{32})$", main("--inspect", tmp_path / "w.ckpt").stdout, re.MULTILINE)[1]
    published = replace(pretrained.PUBLISHED["lsun_cat"], md5=md5)
    monkeypatch.setitem(pretrained.PUBLISHED, "lsun_cat", published)
    assert f"md5: {md5}, that of the published lsun_cat" in main("--inspect", tmp_path / "w.ckpt").stdout


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIG_DIR.glob("*.yml")))
def test_the_architecture_is_read_from_names_and_shapes(name):
    config = load_config(name)
    with torch.device("meta"):
        found = infer(build_unet(config).state_dict(), name)
    model = config.model
    levels = [
        i for i in range(len(model.ch_mult)) if config.data.image_size // 2**i in model.attn_resolutions
    ]
    assert (found.in_channels, found.out_ch, found.ch, found.ch_mult) == (
        model.in_channels,
        model.out_ch,
        model.ch,
        model.ch_mult,
    )
    assert (found.num_res_blocks, list(found.attention_levels)) == (model.num_res_blocks, levels)
    assert found.resamp_with_conv and not found.bayesian


def test_the_readmes_five_lines(tmp_path, pipe, monkeypatch):
    """They are run as they stand, with a small network in place of the shipped one."""
    [lines] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 5 and '"fashion_mnist"' in lines
    monkeypatch.chdir(tmp_path)
    exec(lines.replace('"fashion_mnist"', repr(str(pipe))), {})
    images = sorted(tmp_path.glob("*.png"))
    main(
        "--ckpt",
        pipe,
        "--sample",
        "--fid",
        "--num_samples",
        len(images),
        "--timesteps",
        20,
        "--batch_size",
        len(images),
    )
    for path in images:
        expected = Image.open(tmp_path / "exp" / "image_samples" / "images" / path.name)
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(expected))


def test_sampling_in_python(pipe):
    diffusion = Diffusion.from_pretrained(str(pipe), device="cpu")
    some = dict(diffusion.sample([5, 2], timesteps=4, eta=1.0, seed=7, batch_size=3))
    all_ = dict(diffusion.sample(6, timesteps=4, eta=1.0, seed=7, batch_size=3))
    assert list(some) == [2, 5] and list(all_) == list(range(6))
    assert all(torch.equal(some[i], all_[i]) and some[i].dtype == torch.uint8 for i in some)
    assert not torch.equal(all_[2], dict(diffusion.sample(3, timesteps=4, eta=0.0, seed=7))[2])
    wrong = dict(timesteps=1001, eta=1.5, seed=-1, skip_type="cubic", sample_type="ddim")
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name} is .*must be"):
            diffusion.sample(1, **{name: value})
