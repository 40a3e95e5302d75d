"""diffusers' folders, read and written without it: a UNet2DModel alone, or a pipeline with its scheduler.

The weights are here; the network and the schedule are in diffusers_config.py.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from configs import Config
from configs.refusal import Refusal
from functions.disk import files
from functions.weights import diffusers_config, storage
from functions.weights.checkpoint import Checkpoint, is_weights

SAFETENSORS, BIN = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"

_RESNET = {
    "norm1": "norm1", "conv1": "conv1", "temb_proj": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}  # fmt: skip
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def has_its_names(content: Any) -> bool:
    """Whether `content` is a state dict of diffusers', whose config.json must be known to read it."""
    return is_weights(content) and "time_embedding.linear_1.weight" in content


def weights_file(folder: Path) -> Path | None:
    """The network's weights in a folder of diffusers'."""
    unet = diffusers_config.unet_folder(folder)
    return next((unet / name for name in (SAFETENSORS, BIN) if (unet / name).is_file()), None)


def load(folder: Path) -> tuple[str, Checkpoint]:
    """The format, in words, and the weights under our names; attention may be spelled in the old way or the new.

    Raises Refusal where the network is not one of ours, or for a parameter that ours has not.
    """
    model = diffusers_config.read(folder).model
    if diffusers_config.scheduler_file(folder) is None:
        logging.info(
            f"{folder} has no scheduler_config.json: the schedule is taken to be DDPM's, linear from 1e-4 to 0.02"
        )
    if unknown := diffusers_config.unknown_keys(folder):
        logging.warning(
            f"{folder}: config.json has {', '.join(unknown)}, which UNet2DModel is not known to use: ignored"
        )
    path = weights_file(folder)
    if path is None:
        raise Refusal(
            f"{diffusers_config.unet_folder(folder)} holds no weights: neither {SAFETENSORS} nor {BIN}"
        )
    content = storage.read(path)
    if not is_weights(content):
        raise Refusal(f"{path} holds a {type(content).__name__}, where a state dict of tensors must be")
    ours = {theirs: name for name, theirs in _modules(len(model.ch_mult), model.num_res_blocks).items()}
    weights = {}
    for name, value in content.items():
        module, _, kind = name.rpartition(".")
        module = re.sub(r"(query|key|value|proj_attn)$", lambda match: _OLD_ATTENTION[match[1]], module)
        if module not in ours:
            raise Refusal(
                f"{path} has a parameter {name} {tuple(value.shape)}, which this program's network has not"
            )
        weights[f"{ours[module]}.{kind}"] = (
            value[:, :, None, None] if ".to_" in module and value.dim() == 2 else value
        )
    return f"a diffusers {diffusers_config.class_of(folder)} folder", Checkpoint(model=weights)


def save(folder: Path, weights: dict[str, Tensor], config: Config) -> None:
    """Write a DDIMPipeline folder, which appears whole. Raises Refusal where diffusers has no form for the config."""
    index, network, scheduler = diffusers_config.write(config)
    theirs = _modules(len(config.model.ch_mult), config.model.num_res_blocks)
    renamed = {}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        renamed[f"{theirs[module]}.{kind}"] = (
            value[:, :, 0, 0] if ".to_" in theirs[module] and value.dim() == 4 else value
        )
    with files.atomic_folder(folder) as temporary:
        for path, content in (
            ("model_index.json", index),
            ("unet/config.json", network),
            ("scheduler/scheduler_config.json", scheduler),
        ):
            files.write_text(temporary / path, json.dumps(content, indent=2) + "\n")
        storage.save_safetensors(temporary / "unet" / SAFETENSORS, renamed)


def _modules(levels: int, layers: int) -> dict[str, str]:
    """Our name of every module that may hold parameters → diffusers'. The way up is numbered backwards there."""
    names = {
        "temb.dense.0": "time_embedding.linear_1",
        "temb.dense.1": "time_embedding.linear_2",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }
    resnets = {"mid.block_1": "mid_block.resnets.0", "mid.block_2": "mid_block.resnets.1"}
    attentions = {"mid.attn_1": "mid_block.attentions.0"}
    for i in range(levels):
        down, up = f"down_blocks.{i}", f"up_blocks.{levels - 1 - i}"
        names |= {
            f"down.{i}.downsample.conv": f"{down}.downsamplers.0.conv",
            f"up.{i}.upsample.conv": f"{up}.upsamplers.0.conv",
        }
        for ours, theirs, blocks in ((f"down.{i}", down, layers), (f"up.{i}", up, layers + 1)):
            resnets |= {f"{ours}.block.{j}": f"{theirs}.resnets.{j}" for j in range(blocks)}
            attentions |= {f"{ours}.attn.{j}": f"{theirs}.attentions.{j}" for j in range(blocks)}
    for blocks_of, parts in ((resnets, _RESNET), (attentions, _ATTENTION)):
        names |= {
            f"{ours}.{a}": f"{theirs}.{b}" for ours, theirs in blocks_of.items() for a, b in parts.items()
        }
    return names
