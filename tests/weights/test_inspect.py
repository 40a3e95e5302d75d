"""--inspect tells what a file holds, and shipped and published weights are known by name."""

import json
import re
import shlex
import shutil
import socket
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.layouts import photo
from support.program import ROOT, main, refuses, sampling

from configs import CONFIG_DIR, load_config
from functions.weights import load_checkpoint, pretrained, published, weights_hash
from runners.diffusion import build_unet
from runners.tools.inspection import network_of


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
    assert len(pretrained.PUBLISHED) == 11
    for name, weights in pretrained.PUBLISHED.items():
        config = pretrained.own_config(name)
        if name in ("celeba", "celeba_hq", "fashion_mnist") or name.startswith("ema_"):
            assert pretrained.for_data(config.data) is weights
        if name not in ("celeba", "celeba_hq", "fashion_mnist"):
            raw = name.removeprefix("ema_")
            folder = f"{'ema_' if name != raw else ''}diffusion_{raw}_model"
            assert str(weights.path.parent) == f"/cache/diffusion_models_converted/{folder}"
            assert re.fullmatch(r"https://heibox\.uni-heidelberg\.de/f/[0-9a-f]{20}/\?dl=1", weights.url)
    assert len({weights.md5 for weights in pretrained.PUBLISHED.values()}) == 10
    celeba = load_config("celeba.yml")
    with pytest.raises(ValueError, match=r"image_size is 128.*64"):
        pretrained.for_data(replace(celeba.data, image_size=128))


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
    monkeypatch.setattr(published, "SHIPPED", tmp_path)
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


def test_inspect_tells_what_each_format_holds(tmp_path, run):
    own = load_checkpoint(run.ckpt)
    difference = max((own.model[name] - own.ema[name]).abs().max().item() for name in own.ema)
    raw, ema = weights_hash(own.model), weights_hash(own.ema)
    parameters = f"{sum(p.numel() for p in build_unet(load_config(str(run.config))).parameters()):,}"
    said = main("--inspect", run.ckpt, "--config", run.config, fresh=True).stdout
    for words in (
        "format: this program's checkpoint", "ch 32", "ch_mult [1]", "num_res_blocks 1",
        "attention at level none", f"parameters: {parameters}", f"differ by up to {difference:g}, in ",
        f"hash (raw): {raw}", f"hash (EMA): {ema}", "step 4, epoch 1, an optimizer with its state",
        "fits: no shipped config", f"{run.config}: fits",
    ):  # fmt: skip
        assert words in said
    main(*sampling(run.config, run.ckpt, tmp_path, "--num_samples", 1, "--timesteps", 1))
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
        says=["conv_in.weight", "not a network of this program"],
        tree=tmp_path,
    )


def test_inspect_recognises_a_published_file_by_its_md5(tmp_path, run, monkeypatch):
    torch.save(load_checkpoint(run.ckpt).ema, tmp_path / "w.ckpt")
    md5 = re.search(r"^md5: (\w{32})$", main("--inspect", tmp_path / "w.ckpt").stdout, re.MULTILINE)[1]
    cat = replace(pretrained.PUBLISHED["lsun_cat"], md5=md5)
    monkeypatch.setitem(pretrained.PUBLISHED, "lsun_cat", cat)
    assert f"md5: {md5}, that of the published lsun_cat" in main("--inspect", tmp_path / "w.ckpt").stdout


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIG_DIR.glob("*.yml")))
def test_the_architecture_is_read_from_names_and_shapes(name):
    config = load_config(name)
    with torch.device("meta"):
        found = network_of(build_unet(config).state_dict(), name)
    model, size = config.model, config.data.image_size
    levels = [str(i) for i in range(len(model.ch_mult)) if size // 2**i in model.attn_resolutions]
    assert found == (
        f"{model.in_channels} channels to {model.out_ch}, ch {model.ch}, ch_mult {list(model.ch_mult)}, "
        f"num_res_blocks {model.num_res_blocks}, attention at level {', '.join(levels)} "
        "(0 is the image's size, each next one half of it)"
    )


def test_a_runs_folder_stands_for_its_last_checkpoint(run):
    said = main("--inspect", run.exp / "logs" / "d").stdout
    assert said == main("--inspect", run.ckpt).stdout
    (command,) = re.findall(r"^to train on: python main.py (.*)$", said, re.MULTILINE)
    assert command == f"--exp {run.exp} --doc d --resume_training --set training.n_iters=8"
    assert "prediction: eps" in said
    assert f"to sample: python main.py --exp {run.exp} --doc d --sample --fid --timesteps 50" in said
    assert re.search(r"^run: .*/logs/d, DIGITS in .*, seed 1234, precision default", said, re.MULTILINE)


def test_a_folder_of_images_is_told_and_its_command_continues_it(tmp_path, run):
    """The command that it prints finds the folder complete, and with more images extends it."""
    folder = tmp_path / "image_samples" / "a"
    command = sampling(run.config, run.ckpt, tmp_path, "-i", "a", "--num_samples", 2, "--timesteps", 3)
    main(*command, "--eta", 0.5)
    said = main("--inspect", folder).stdout
    for words in ("2 PNGs", "η = 0.5, 4 timesteps from 999 to 0 (uniform, S = 3)", "seed: 1234", "step 4"):
        assert words in said, words
    (command,) = re.findall(r"^made by: python main.py (.*)$", said, re.MULTILINE)
    assert "2 already there" in main(*shlex.split(command)).stderr
    assert "1 images to make" in main(*shlex.split(command), "--num_samples", 3).stderr
    main(*shlex.split(command), "-i", "g", "--seed", 1, 2)
    said = main("--inspect", tmp_path / "image_samples" / "g").stdout
    assert "a grid" in said and "2 cells" in said and "| NFE |" in said and "--seed 1 2" in said
    assert "holds folders of images: a, g; --inspect" in main("--inspect", folder.parent).stdout
    (folder / "manifest.json").write_text("{}")
    refuses("--inspect", folder, says=["manifest.json is damaged"], tree=tmp_path)


MISTAKES = {
    "page.ckpt": (b"<!DOCTYPE html><html>no such file</html>", "a web page"),
    "pointer.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git LFS"),
    "picture.ckpt": (b"\x89PNG\r\n\x1a\n" + bytes(60), "a picture"),
    "notes.ckpt": (b"epoch 3\nloss 29\n", "a text file"),
    "keras.ckpt": (b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file"),
    "empty.ckpt": (b"", "it is empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_named_by_mistake_is_told_alike_everywhere(tmp_path, name):
    content, says = MISTAKES[name]
    (tmp_path / name).write_bytes(content)
    told_by_inspect = main("--inspect", tmp_path / name, code=2).stderr
    command = ("--config digits.yml --sample --fid --exp", tmp_path, "--ckpt", tmp_path / name)
    assert says in told_by_inspect and main(*command, code=2).stderr == told_by_inspect


def test_archives_that_are_not_checkpoints_are_told(tmp_path, extractor):
    np.savez(tmp_path / "a.npz", mu=np.zeros(2))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.png", b"")
    refuses("--inspect", tmp_path / "a.npz", says=["numpy's arrays", "--reference"], tree=tmp_path)
    refuses("--inspect", tmp_path / "b.zip", says=["a zip file without a checkpoint"], tree=tmp_path)
    refuses("--inspect", extractor, says=["an exported program", "--features"], tree=tmp_path)
    refuses("--inspect", tmp_path, says=["neither a run's ckpt.pth nor diffusers'"], tree=tmp_path)


def test_a_diffusers_folder_says_a_command_that_samples_from_it(tmp_path, run):
    main("--config", run.config, "--ckpt", run.ckpt, "--export", tmp_path / "exported")
    said = main("--inspect", tmp_path / "exported").stdout
    assert "fits: its own config" in said and "prediction: eps" in said
    (command,) = re.findall(r"^to sample: python main.py (.*)$", said, re.MULTILINE)
    main(*shlex.split(command), "--num_samples", 2, "--timesteps", 2, "--batch_size", 2, cwd=tmp_path)
    assert (tmp_path / "exp" / "image_samples" / "exported" / "1.png").is_file()


def test_a_network_of_other_shapes_is_refused(tmp_path, run):
    for name, shape in {"conv_in.weight": (3,), "down.0.block.0.conv1.weight": (0, 1, 3, 3)}.items():
        weights = torch.load(run.ckpt)["model"]
        weights[name] = torch.zeros(shape)
        torch.save(weights, tmp_path / "a.pth")
        refuses("--inspect", tmp_path / "a.pth", says=[name, "not a network of this program"], tree=tmp_path)


def test_a_folder_of_ones_own_pictures_is_told(tmp_path):
    (tmp_path / "mine").mkdir()
    for i in range(3):
        photo(20, 24, seed=i).save(tmp_path / "mine" / f"{i}.png")
    said = main("--inspect", tmp_path / "mine").stdout
    assert "3 pictures" in said and "20 x 24" in said
    assert f"main.py --new-config {tmp_path / 'mine'}" in said
