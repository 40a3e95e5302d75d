"""diffusers' JSON files and our Config: the network and the schedule that a folder describes, each way.

A folder is a UNet2DModel's (config.json), or a pipeline's: model_index.json with unet/ and scheduler/, or with their
files beside it, as the older ones on the Hugging Face Hub have them.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import yaml

from configs import Config, DiffusionConfig, config_from, load_config, to_yaml
from configs.refusal import Refusal
from functions.schedules import betas

PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
SCHEDULES = {"linear": "linear", "scaled_linear": "quad", "sigmoid": "sigmoid"}

# What UNet2DModel takes where its config.json omits the key, and what computes the same as our network.
_NETWORK: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "act_fn": ("silu", ("silu", "swish")),
    "add_attention": (True, (True,)),
    "attn_norm_num_groups": (None, (None, 32)),
    "center_input_sample": (False, (False,)),
    "class_embed_type": (None, (None,)),
    "downsample_padding": (1, (0,)),
    "downsample_type": ("conv", ("conv",)),
    "flip_sin_to_cos": (True, (False,)),
    "freq_shift": (0, (1,)),
    "mid_block_scale_factor": (1, (1,)),
    "mid_block_type": ("UNetMidBlock2D", ("UNetMidBlock2D",)),
    "norm_eps": (1e-5, (1e-6,)),
    "norm_num_groups": (32, (32,)),
    "num_class_embeds": (None, (None,)),
    "resnet_time_scale_shift": ("default", ("default",)),
    "time_embedding_type": ("positional", ("positional",)),
    "upsample_type": ("conv", ("conv",)),
}
# What else is read of it, or decides nothing.
_ALSO_READ = {
    "_class_name", "_diffusers_version", "_name_or_path", "sample_size", "in_channels", "out_channels", "block_out_channels",
    "layers_per_block", "down_block_types", "up_block_types", "attention_head_dim", "dropout", "time_embedding_dim",
    "num_train_timesteps",
}  # fmt: skip
_SCHEDULER: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "prediction_type": ("epsilon", ("epsilon",)),
    "rescale_betas_zero_snr": (False, (False,)),
    "variance_type": (None, (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")),
}
_ATTENDS = {"DownBlock2D": False, "AttnDownBlock2D": True, "UpBlock2D": False, "AttnUpBlock2D": True}


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder of diffusers'."""
    return any((path / name).is_file() for name in ("config.json", "model_index.json", "unet/config.json"))


def unet_folder(folder: Path) -> Path:
    """Where the network's config.json and weights lie."""
    return folder / "unet" if (folder / "unet").is_dir() else folder


def scheduler_file(folder: Path) -> Path | None:
    """Where the schedule is described; a UNet2DModel alone has none."""
    candidates = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    return next((path for path in candidates if path.is_file()), None)


def class_of(folder: Path) -> str:
    """The pipeline's class, or UNet2DModel. Raises Refusal for a pipeline that is more than a network and a schedule."""
    index = folder / "model_index.json"
    if not index.is_file():
        return "UNet2DModel"
    name = _json(index).get("_class_name")
    if name not in PIPELINES:
        raise Refusal(f"{index}: _class_name is {name!r}; it must be one of {', '.join(PIPELINES)}")
    return str(name)


def read(folder: Path) -> Config:
    """The config of a folder: its network and schedule, images in [-1, 1], and a shipped config's training.

    Raises Refusal, naming the file and the key, for anything that our network or schedule has not.
    """
    class_of(folder)
    network, sample_size = _read_network(unet_folder(folder) / "config.json")
    diffusion, var_type = _read_schedule(folder)
    tree = yaml.safe_load(to_yaml(load_config("bedroom.yml" if sample_size >= 256 else "celeba.yml")))
    tree["data"].pop("category", None)
    tree["data"] |= {"dataset": "FOLDER", "image_size": sample_size, "channels": network["in_channels"]}
    tree["model"] |= {**network, "var_type": var_type}
    return config_from({**tree, "diffusion": diffusion}, str(folder))


def unknown_keys(folder: Path) -> list[str]:
    """Keys of the network's config.json that neither its class nor this program knows: diffusers ignores them too."""
    return sorted(_json(unet_folder(folder) / "config.json").keys() - _NETWORK.keys() - _ALSO_READ)


def check(folder: Path, config: Config) -> None:
    """Hold a folder's own config against `config`. Raises Refusal with the first key that differs."""
    own = read(folder)
    values = {
        "data.image_size": lambda c: c.data.image_size,
        "data.channels": lambda c: c.data.channels,
        "data.rescaled": lambda c: c.data.rescaled,
        "data.logit_transform": lambda c: c.data.logit_transform,
        "model.type": lambda c: c.model.type,
        "model.ch": lambda c: c.model.ch,
        "model.ch_mult": lambda c: list(c.model.ch_mult),
        "model.num_res_blocks": lambda c: c.model.num_res_blocks,
        "model.attn_resolutions": lambda c: [r for r in _resolutions(c) if r in c.model.attn_resolutions],
        "model.resamp_with_conv": lambda c: c.model.resamp_with_conv,
        "diffusion.num_diffusion_timesteps": lambda c: c.diffusion.num_diffusion_timesteps,
    }
    for key, value in values.items():
        if value(own) != value(config):
            raise Refusal(
                f"{folder} does not fit the config: {key} is {value(own)} there and {value(config)} in the config"
            )
    if not np.allclose(betas(own.diffusion), betas(config.diffusion), rtol=1e-5, atol=0):
        there, here = own.diffusion, config.diffusion
        raise Refusal(
            f"{folder} does not fit the config: its schedule is {there.beta_schedule} from {there.beta_start:g} to "
            f"{there.beta_end:g}, and the config's {here.beta_schedule} from {here.beta_start:g} to {here.beta_end:g}"
        )


def write(config: Config) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The contents of model_index.json, unet/config.json and scheduler/scheduler_config.json for a DDIMPipeline.

    Raises Refusal, naming the key, where diffusers has no network or pipeline that computes the same.
    """
    model, diffusion = config.model, config.diffusion
    reasons = {
        "model.type bayesian": model.type == "bayesian",
        "model.resamp_with_conv false": not model.resamp_with_conv and len(model.ch_mult) > 1,
        f"model.ch_mult beginning with {model.ch_mult[0]}": model.ch_mult[0] != 1,
        "data.logit_transform": config.data.logit_transform,
        "data.rescaled false": not config.data.rescaled,
    }
    for reason, true in reasons.items():
        if true:
            raise Refusal(f"{reason} has no diffusers form; --export FILE.pth or FILE.safetensors keeps it")
    attends = [resolution in model.attn_resolutions for resolution in _resolutions(config)]
    network = {
        "_class_name": "UNet2DModel",
        "sample_size": config.data.image_size,
        "in_channels": model.in_channels,
        "out_channels": model.out_ch,
        "block_out_channels": [model.ch * mult for mult in model.ch_mult],
        "layers_per_block": model.num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "attention_head_dim": None,
        "dropout": model.dropout,
        **{key: right[0] for key, (_, right) in _NETWORK.items()},
    }
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": diffusion.num_diffusion_timesteps,
        "beta_schedule": "linear",
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "trained_betas": None if diffusion.beta_schedule == "linear" else betas(diffusion).tolist(),
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
        "prediction_type": "epsilon",
        "variance_type": model.var_type.replace("fixed", "fixed_"),
    }
    index = {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    return index, network, scheduler


def _read_network(path: Path) -> tuple[dict[str, Any], int]:
    """The model section's keys, and the image size."""
    content = _json(path)
    if content.get("_class_name") != "UNet2DModel":
        raise Refusal(f"{path}: _class_name is {content.get('_class_name')!r}; it must be UNet2DModel")
    _check_keys(path, content, _NETWORK, "this program's network")
    size, widths = content.get("sample_size"), content.get("block_out_channels", [224, 448, 672, 896])
    if isinstance(size, list) and size and all(side == size[0] for side in size):
        size = size[0]
    if not isinstance(size, int):
        raise Refusal(f"{path}: sample_size is {size!r}; it must be the width of a square image")
    if not _whole_numbers(widths) or any(width % widths[0] for width in widths):
        raise Refusal(f"{path}: block_out_channels is {widths!r}; each must be a multiple of the first")
    if content.get("time_embedding_dim") not in (None, 4 * widths[0]):
        raise Refusal(
            f"{path}: time_embedding_dim is {content['time_embedding_dim']!r}; it must be {4 * widths[0]}"
        )
    attends = _attending_levels(path, content, len(widths))
    _check_one_head(
        path, content, [width for width, attend in zip(widths, attends, strict=True) if attend] + widths[-1:]
    )
    return {
        "type": "simple",
        "in_channels": content.get("in_channels", 3),
        "out_ch": content.get("out_channels", 3),
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": content.get("layers_per_block", 2),
        "attn_resolutions": [size // 2**level for level, attend in enumerate(attends) if attend],
        "dropout": content.get("dropout", 0.0),
        "resamp_with_conv": True,
    }, size


def _attending_levels(path: Path, content: dict[str, Any], levels: int) -> list[bool]:
    """Whether each level has attention; the way up must mirror the way down."""
    ways = {}
    for key, default in (
        ("down_block_types", ["DownBlock2D"] + 3 * ["AttnDownBlock2D"]),
        ("up_block_types", 3 * ["AttnUpBlock2D"] + ["UpBlock2D"]),
    ):
        types = content.get(key, default)
        if not isinstance(types, list) or len(types) != levels:
            raise Refusal(
                f"{path}: {key} is {types!r}; it must have {levels} entries, one for each of block_out_channels"
            )
        direction = "Down" if key == "down_block_types" else "Up"
        for block in types:
            name = str(block).removeprefix("UNetRes")  # a spelling of the first releases
            if name not in _ATTENDS or direction not in name:
                raise Refusal(
                    f"{path}: {key} has {block!r}; it must be {direction}Block2D or Attn{direction}Block2D"
                )
        ways[key] = [_ATTENDS[str(block).removeprefix("UNetRes")] for block in types]
    if ways["up_block_types"] != ways["down_block_types"][::-1]:
        raise Refusal(
            f"{path}: up_block_types has attention elsewhere than down_block_types; it must be at the same levels"
        )
    return ways["down_block_types"]


def _check_one_head(path: Path, content: dict[str, Any], widths: list[int]) -> None:
    """attention_head_dim is the width of a head: null means one head, and 8 stands where the key is omitted."""
    width = content.get("attention_head_dim", 8)
    if width is not None and any(width != w for w in widths):
        omitted = "" if "attention_head_dim" in content else " (diffusers' default, for it is omitted)"
        raise Refusal(
            f"{path}: attention_head_dim is {width}{omitted}; it must be null, for our attention has one head"
        )


def _read_schedule(folder: Path) -> tuple[dict[str, Any], str]:
    """The diffusion section's keys, and the variance type. Without a scheduler's file it is DDPM's."""
    path = scheduler_file(folder)
    content = _json(path) if path else {"_class_name": "DDPMScheduler"}
    if content.get("_class_name") not in SCHEDULERS:
        raise Refusal(
            f"{path}: _class_name is {content.get('_class_name')!r}; it must be one of {', '.join(SCHEDULERS)}"
        )
    _check_keys(path or folder, content, _SCHEDULER, "this program")
    schedule: dict[str, Any] = {
        "beta_schedule": content.get("beta_schedule", "linear"),
        "beta_start": content.get("beta_start", 1e-4),
        "beta_end": content.get("beta_end", 0.02),
        "num_diffusion_timesteps": content.get("num_train_timesteps", 1000),
    }
    for key in ("beta_start", "beta_end"):
        if not isinstance(schedule[key], float) or not 0 < schedule[key] < 1:
            raise Refusal(f"{path}: {key} is {schedule[key]!r}; it must be a number above 0 and below 1")
    var_type = "fixedlarge" if str(content.get("variance_type")).startswith("fixed_large") else "fixedsmall"
    if content.get("trained_betas") is not None:
        return _schedule_of(path or folder, content["trained_betas"], schedule), var_type
    if schedule["beta_schedule"] not in SCHEDULES:
        raise Refusal(
            f"{path}: beta_schedule is {schedule['beta_schedule']!r}; it must be one of {', '.join(SCHEDULES)}"
        )
    return {**schedule, "beta_schedule": SCHEDULES[schedule["beta_schedule"]]}, var_type


def _schedule_of(path: Path, trained: Any, schedule: dict[str, Any]) -> dict[str, Any]:
    """The one of our schedules whose β are `trained`, with the file's own beta_start and beta_end or the list's ends."""
    T = schedule["num_diffusion_timesteps"]
    numbers = (
        isinstance(trained, list) and bool(trained) and all(isinstance(beta, int | float) for beta in trained)
    )
    if not numbers or len(trained) != T:
        raise Refusal(
            f"{path}: trained_betas must be a list of as many numbers as num_train_timesteps, which is {T}"
        )
    for start, end in ((schedule["beta_start"], schedule["beta_end"]), (trained[0], trained[-1])):
        for name in get_args(get_type_hints(DiffusionConfig)["beta_schedule"]):
            candidate = DiffusionConfig(name, start, end, T)
            if np.allclose(betas(candidate), trained, rtol=1e-6, atol=0):
                return asdict(candidate)
    raise Refusal(f"{path}: trained_betas are none of the schedules that diffusion.beta_schedule can name")


def _check_keys(
    path: Path, content: dict[str, Any], keys: dict[str, tuple[Any, tuple[Any, ...]]], whose: str
) -> None:
    for key, (default, right) in keys.items():
        value = content.get(key, default)
        if value not in right:
            omitted = "" if key in content else " (diffusers' default, for it is omitted)"
            choices = " or ".join(json.dumps(choice) for choice in right)
            raise Refusal(
                f"{path}: {key} is {json.dumps(value)}{omitted}; {whose} computes what {choices} does"
            )


def _resolutions(config: Config) -> list[int]:
    return [config.data.image_size // 2**level for level in range(len(config.model.ch_mult))]


def _whole_numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(value, int) and value > 0 for value in values)
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"there is no {path}") from None
    except ValueError as error:
        raise Refusal(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise Refusal(f"{path} holds a {type(content).__name__}; it must be an object")
    return content
