"""Weights inside what other programs put around them: the same bits, or a sentence that names the keys."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.program import small_config

from configs import load_config
from configs.refusal import Refusal
from functions.weights import diffusers, load_checkpoint
from runners.diffusion import build_unet


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("c") / "c.yml")
    torch.manual_seed(0)
    return build_unet(load_config(str(config))).state_dict()


def prefixed(weights, prefix):
    return {f"{prefix}{name}": value for name, value in weights.items()}


def equal(found, weights):
    return found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.",
    "model.module.net.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_in_any_format(tmp_path, weights, prefix):
    inside, adam = prefixed(weights, prefix), {"state": {}, "param_groups": []}
    torch.save(inside, tmp_path / "bare.pth")
    save_file(inside, tmp_path / "a.safetensors")
    torch.save([inside, adam, 1, 10, prefixed(weights, "_orig_mod.")], tmp_path / "list.pth")
    torch.save({"state_dict": inside, "epoch": 1, "global_step": 2}, tmp_path / "lightning.ckpt")
    for name in ("bare.pth", "a.safetensors", "list.pth", "lightning.ckpt"):
        checkpoint = load_checkpoint(tmp_path / name)
        assert equal(checkpoint.model, weights), name
        assert checkpoint.ema is None or equal(checkpoint.ema, weights)


def test_raw_and_average_are_told_apart(tmp_path, weights):
    ema = {name: value + 1 for name, value in weights.items()}
    shapes = {
        "a": {"model": weights, "ema": ema, "optimizer": {}, "step": 10},
        "b": {"params": weights, "params_ema": ema},
        "c": {"state_dict": prefixed(weights, "model.") | prefixed(ema, "ema_model.")},
        "d": prefixed(weights, "online_model.") | prefixed(ema, "ema_model.") | {"step": torch.tensor(3)},
        "e": [weights, {"state": {}, "param_groups": []}, 1, 10, ema, {"last_epoch": 1}],
    }
    for name, content in shapes.items():
        torch.save(content, tmp_path / name)
        checkpoint = load_checkpoint(tmp_path / name)
        assert equal(checkpoint.model, weights) and equal(checkpoint.ema, ema), name
    torch.save({"ema": ema}, tmp_path / "only")
    assert load_checkpoint(tmp_path / "only").select("ema", "")[1] == "ema"
    with pytest.raises(Refusal, match="has EMA weights only"):
        load_checkpoint(tmp_path / "only").select("raw", "it")


def test_what_is_not_clear_is_named(tmp_path, weights):
    torch.save({"first": weights, "second": weights}, tmp_path / "two")
    with pytest.raises(Refusal, match="2 networks, 'first', 'second'"):
        load_checkpoint(tmp_path / "two")
    torch.save({"unet2": {"a": torch.zeros(1)}, "step": 1}, tmp_path / "other")
    with pytest.raises(Refusal, match="a dict with the keys 'unet2', 'step'"):
        load_checkpoint(tmp_path / "other")


def test_an_average_without_names_is_paired_in_order_or_named(tmp_path, weights, caplog):
    shadow = [value + 1 for value in weights.values()]
    torch.save({"model": weights, "ema": {"decay": 0.9, "shadow_params": shadow}}, tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a")
    assert equal(checkpoint.model, weights)
    assert equal(checkpoint.ema, {name: value + 1 for name, value in weights.items()})
    torch.save({"model": weights, "ema": {"shadow_params": shadow[1:]}}, tmp_path / "b")
    assert load_checkpoint(tmp_path / "b").ema is None
    assert "'ema.shadow_params' is left out" in caplog.text
    torch.save({"model": weights, "one": shadow, "two": shadow}, tmp_path / "c")
    with pytest.raises(Refusal, match="2 averages, 'one', 'two'"):
        load_checkpoint(tmp_path / "c")


def test_numpys_numbers_are_data_and_code_is_code(tmp_path, weights):
    numbers = {"loss": np.float64(1.5), "n": np.int32(3), "dtype": np.dtype("float32"), "array": np.arange(3)}
    torch.save({"model": weights, **numbers}, tmp_path / "numbers")
    assert equal(load_checkpoint(tmp_path / "numbers").model, weights)
    torch.save({"model": weights, "f": eval}, tmp_path / "code")
    with pytest.raises(Refusal, match="holds code"):
        load_checkpoint(tmp_path / "code")


def test_variants_shards_and_the_average_of_a_diffusers_folder(tmp_path, weights):
    config = load_config(str(small_config(tmp_path / "c.yml")))
    folder, unet = tmp_path / "a", tmp_path / "a" / "unet"
    diffusers.save(folder, weights, config)
    whole = unet / "diffusion_pytorch_model.safetensors"
    content = load_file(whole)
    one_more = {name: value + 1 for name, value in content.items()}
    (folder / "unet_ema").mkdir()
    for path in (folder / "unet_ema" / whole.name, unet / "ema.safetensors"):
        save_file(one_more, path)
        checkpoint = load_checkpoint(folder)
        assert equal(checkpoint.model, weights)
        assert equal(checkpoint.ema, {name: value + 1 for name, value in weights.items()})
        path.unlink()
    assert load_checkpoint(folder).ema is None

    whole.rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    assert equal(load_checkpoint(folder).model, weights)
    (unet / "diffusion_pytorch_model.fp16.safetensors").unlink()
    names, places = list(content), {}
    for i, part in enumerate((names[:9], names[9:])):
        shard = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: content[name] for name in part}, unet / shard)
        places |= dict.fromkeys(part, shard)
    (unet / f"{whole.name}.index.json").write_text(json.dumps({"weight_map": places}))
    assert equal(load_checkpoint(folder).model, weights)
    (unet / shard).unlink()
    with pytest.raises(Refusal, match="names the shard diffusion_pytorch_model-00002"):
        load_checkpoint(folder)
