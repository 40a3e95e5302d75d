"""The weights of diffusers' folders, read and written without it. The JSON files: diffusers_config.py."""

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from configs import Config
from functions.disk import files
from functions.weights import diffusers_config, diffusers_files, storage
from functions.weights.checkpoint import Checkpoint
from functions.weights.diffusers_files import SAFETENSORS

MARK = "time_embedding.linear_1.weight"  # only diffusers' networks have it

# Parts of names, ours and diffusers'; and how diffusers spelled some before.
_NAMES = [
    ("temb.dense.0", "time_embedding.linear_1"), ("temb.dense.1", "time_embedding.linear_2"),
    ("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1"),
    ("mid.attn_1", "mid_block.attentions.0"), ("down.", "down_blocks."), ("up.", "up_blocks."),
    (".block.", ".resnets."), (".attn.", ".attentions."), (".temb_proj.", ".time_emb_proj."),
    (".nin_shortcut.", ".conv_shortcut."), (".norm.", ".group_norm."), (".q.", ".to_q."), (".k.", ".to_k."),
    (".v.", ".to_v."), (".proj_out.", ".to_out.0."), (".downsample.", ".downsamplers.0."),
    (".upsample.", ".upsamplers.0."), ("norm_out.", "conv_norm_out."),
]  # fmt: skip
_OLD = [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")]


def load(folder: Path) -> tuple[str, Checkpoint]:
    """The format in words, and the weights by our names. Raises Refusal for a network unlike ours."""
    config = diffusers_config.read(folder)
    if not diffusers_config.find(folder, "scheduler_config.json").is_file():
        taken = "DDPM's schedule is taken, from 1e-4 to 0.02, and that the network predicts ε"
        logging.info(f"{folder} has no scheduler_config.json: {taken}")
    if unknown := diffusers_config.unknown_keys(folder):
        logging.warning(f"{folder}: ignored, as UNet2DModel is not known to use them: {', '.join(unknown)}")
    raw = _by_our_names(diffusers_files.network(folder), config)
    average = diffusers_files.average(folder)
    ema = _by_our_names(average, config) if average is not None else None
    return f"a diffusers {diffusers_config.class_of(folder)} folder", Checkpoint(raw, ema)


def _by_our_names(content: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    weights = {}
    for theirs, value in content.items():
        theirs = _replace(theirs, _OLD)
        ours = _reverse_up(_replace(theirs, [(new, old) for old, new in _NAMES]), config)
        weights[ours] = value[:, :, None, None] if ".to_" in theirs and value.dim() == 2 else value
    return weights


def save(folder: Path, weights: dict[str, Tensor], config: Config) -> None:
    """Write a DDIMPipeline's folder; it appears whole. Raises Refusal as `diffusers_config.to_json`."""
    contents, renamed = diffusers_config.to_json(config), {}
    for ours, value in weights.items():
        theirs = _replace(_reverse_up(ours, config), _NAMES)
        renamed[theirs] = value[:, :, 0, 0] if ".to_" in theirs and value.dim() == 4 else value
    with files.atomic_folder(folder) as temporary:
        for path, content in contents.items():
            files.write_text(temporary / path, json.dumps(content, indent=2) + "\n")
        storage.save_safetensors(temporary / "unet" / SAFETENSORS, renamed)


def _replace(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


def _reverse_up(name: str, config: Config) -> str:
    """The name with the levels of the way up numbered from the other end, as in diffusers."""
    return re.sub(r"^up\.(\d+)", lambda match: f"up.{len(config.model.ch_mult) - 1 - int(match[1])}", name)
