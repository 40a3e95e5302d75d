"""Small pipelines as diffusers itself writes them."""

import json
import re

import diffusers as reference
import torch
from safetensors.torch import load_file

from functions.weights import diffusers_files

OLD_SPELLING = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def unet2d(size: int, widths: list[int], attention: int | None, **changes) -> reference.UNet2DModel:
    """diffusers' own network, randomly initialised, with attention at one level that is far from uniform."""
    down, up = len(widths) * ["DownBlock2D"], len(widths) * ["UpBlock2D"]
    if attention is not None:
        down[attention], up[-1 - attention] = "AttnDownBlock2D", "AttnUpBlock2D"
    torch.manual_seed(0)
    arguments = {
        "sample_size": size, "block_out_channels": widths, "down_block_types": down, "up_block_types": up,
        "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
        "attention_head_dim": None,
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
    weights = load_file(folder / diffusers_files.SAFETENSORS)
    renamed = {
        re.sub(r"to_q|to_k|to_v|to_out\.0", lambda m: OLD_SPELLING[m[0]], name): v
        for name, v in weights.items()
    }
    assert len(renamed.keys() - weights.keys()) >= 8
    (folder / diffusers_files.SAFETENSORS).unlink()
    torch.save(renamed, folder / diffusers_files.BIN)
