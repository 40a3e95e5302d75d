"""diffusers' networks compute the same here, and what is more than ours is refused by name."""

import os
import re
import shutil
from dataclasses import replace

import diffusers as reference
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.pipelines import edit, pipeline, spell_as_old, unet2d
from support.program import main, refuses

from configs import load_config, to_yaml
from configs.refusal import Refusal
from functions.noise import initial_noise
from functions.samplers import last
from functions.schedules import alphas_cumprod, betas
from functions.weights import diffusers, diffusers_config, diffusers_files, load_checkpoint
from runners.diffusion import Diffusion


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


@pytest.mark.parametrize("theirs, ours", [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")])
def test_each_kind_of_prediction_is_read_sampled_and_exported(tmp_path, theirs, ours):
    """Against DDIMScheduler's own steps on diffusers' network, and back into a folder."""
    source = pipeline(tmp_path / "p", unet2d(8, [32, 64], 1), prediction_type=theirs)
    diffusion = Diffusion.from_pretrained(str(source), device="cpu")
    assert diffusion.config.model.prediction == ours
    diffusers.save(tmp_path / "out", diffusion.model.state_dict(), diffusion.config)
    scheduler = reference.DDIMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    assert scheduler.config.prediction_type == theirs
    unet = reference.UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    scheduler.set_timesteps(10)
    x = diffusion.latents(range(2))
    with torch.no_grad():
        found = last(diffusion.denoise(x, diffusion.sampling(10, clip_x0="off"))).x
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x, eta=0.0).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)
    other = replace(
        diffusion.config, model=replace(diffusion.config.model, prediction="v" if ours == "eps" else "eps")
    )
    with pytest.raises(Refusal, match=r"model\.prediction is"):
        diffusers_config.check(source, other)


@pytest.mark.parametrize("schedule", ["linear", "quad", "const", "jsd", "sigmoid", "cosine", "warmup10"])
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
        (dict(beta_schedule="squaredcos_cap_v2"), "cosine"),
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
        (
            dict(up_block_types=["UpBlock2D", "UpBlock2D"]),
            ["up_block_types", 'must be ["AttnUpBlock2D", "UpBlock2D"]'],
        ),
        (
            dict(up_block_types=["UpBlock2D"]),
            ['up_block_types is ["UpBlock2D"];', '["AttnUpBlock2D", "UpBlock2D"]'],
        ),
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
            dict(prediction_type="flow_prediction"),
            ["prediction_type", "flow_prediction", "epsilon"],
        ),
        ("scheduler/scheduler_config.json", dict(rescale_betas_zero_snr=True), ["rescale_betas_zero_snr"]),
        ("scheduler/scheduler_config.json", dict(variance_type="learned_range"), ["variance_type"]),
        ("scheduler/scheduler_config.json", dict(beta_schedule="laplace"), ["beta_schedule", "laplace"]),
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
    """Parameters missing, strange and misshapen; no weights, code, a cut file, a file without its folder."""
    good = load_file(pipe / "unet" / diffusers_files.SAFETENSORS)
    lacking = {name: value for name, value in good.items() if name != "mid_block.attentions.0.to_q.weight"}
    cut = (pipe / "unet" / diffusers_files.SAFETENSORS).read_bytes()[:-10]
    cases = {
        "lacking": (
            lambda unet: save_file(lacking, unet / diffusers_files.SAFETENSORS),
            ["mid.attn_1.q.weight (64, 64, 1, 1)"],
        ),
        "strange": (
            lambda unet: save_file(
                good | {"class_embedding.weight": torch.zeros(3)}, unet / diffusers_files.SAFETENSORS
            ),
            ["class_embedding.weight (3,)"],
        ),
        "misshapen": (
            lambda unet: save_file(
                good | {"conv_in.weight": torch.zeros(64, 3, 3, 3)}, unet / diffusers_files.SAFETENSORS
            ),
            ["conv_in.weight", "(64, 3, 3, 3)", "(32, 3, 3, 3)"],
        ),
        "none": (lambda unet: None, ["holds no weights", diffusers_files.SAFETENSORS, diffusers_files.BIN]),
        "code": (
            lambda unet: torch.save({"conv_in.weight": Malicious()}, unet / diffusers_files.BIN),
            ["holds code", "not run"],
        ),
        "cut": (lambda unet: (unet / diffusers_files.SAFETENSORS).write_bytes(cut), ["damaged"]),
        "list": (lambda unet: torch.save([1], unet / diffusers_files.BIN), ["holds a list"]),
    }
    for name, (write, says) in cases.items():
        folder = shutil.copytree(pipe, tmp_path / name)
        (folder / "unet" / diffusers_files.SAFETENSORS).unlink()
        write(folder / "unet")
        sample = ("--ckpt", folder, "--exp", tmp_path, "--sample", "--fid", "--timesteps", 2)
        refuses(*sample, says=(str(folder), *says), tree=tmp_path, cwd=tmp_path, fresh=name == "code")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "config.yml").write_text(to_yaml(diffusers_config.read(pipe)))
    shutil.copy(pipe / "unet" / diffusers_files.SAFETENSORS, tmp_path / "bare.safetensors")
    refuses(
        "--ckpt", tmp_path / "bare.safetensors", "--exp", tmp_path, "--sample", "--fid",
        says=["diffusers", "name its folder"], tree=tmp_path,
    )  # fmt: skip
    (tmp_path / "cut.safetensors").write_bytes(cut)
    sample = ("--ckpt", tmp_path / "cut.safetensors", "--exp", tmp_path, "--sample --fid")
    refuses(*sample, says=["damaged"], tree=tmp_path)


@pytest.mark.parametrize(
    "section, changes, says",
    [
        ("data", dict(image_size=32), ["data.image_size is 16; it must be 32"]),
        ("data", dict(rescaled=False), ["data.rescaled is true; it must be false"]),
        ("model", dict(ch=64), ["model.ch is 32; it must be 64"]),
        ("model", dict(ch_mult=(1, 1)), ["model.ch_mult is [1, 2]; it must be [1, 1]"]),
        ("model", dict(attn_resolutions=(16,)), ["model.attn_resolutions is [8]; it must be [16]"]),
        ("diffusion", dict(beta_end=0.02), ["linear from 0.0001 to 0.002", "linear from 0.0001 to 0.02"]),
        ("diffusion", dict(beta_schedule="quad"), ["linear from", "quad from"]),
        ("diffusion", dict(num_diffusion_timesteps=100), ["num_diffusion_timesteps is 1000; it must be 100"]),
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
    main("--ckpt", pipe, "--exp", tmp_path, "--sample --fid --num_samples 2 --timesteps 2", fresh=True)
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
