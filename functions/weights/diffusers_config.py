"""diffusers' JSON files and our Config: the network and the schedule of a folder, each way.

A folder is a UNet2DModel's, with a config.json, or a pipeline's, with model_index.json, unet/ and scheduler/.
Older pipelines have all files side by side.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import yaml

from configs import Config, DiffusionConfig, config_from, door, load_config, to_yaml
from configs.refusal import Refusal, quoted
from functions.schedules import betas

INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
SCHEDULES = {"linear": "linear", "scaled_linear": "quad", "sigmoid": "sigmoid", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}  # these two: diffusers' name: ours

# UNet2DModel's keys, and the value of each that config.json omits.
_DEFAULTS: dict[str, Any] = {
    "_class_name": None, "sample_size": None, "in_channels": 3, "out_channels": 3,
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D"] + 3 * ["AttnDownBlock2D"],
    "up_block_types": 3 * ["AttnUpBlock2D"] + ["UpBlock2D"], "attention_head_dim": 8, "dropout": 0.0,
    "act_fn": "silu", "add_attention": True, "attn_norm_num_groups": None, "center_input_sample": False,
    "class_embed_type": None, "downsample_padding": 1, "downsample_type": "conv", "flip_sin_to_cos": True,
    "freq_shift": 0, "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2D", "norm_eps": 1e-5,
    "norm_num_groups": 32, "num_class_embeds": None, "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional", "upsample_type": "conv",
}  # fmt: skip
# What every network of ours has instead. An attention_head_dim of null means one head.
_OURS: dict[str, Any] = {
    "_class_name": "UNet2DModel", "attention_head_dim": None, "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip
_ALSO_KNOWN = {"_diffusers_version", "_name_or_path", "num_train_timesteps", "time_embedding_dim"}
_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
# The scheduler that computes what this program does, and the value of each key that its file omits.
_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear",
    "beta_start": 1e-4, "beta_end": 0.02, "trained_betas": None, "clip_sample": False,
    "set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "leading",
    "prediction_type": "epsilon", "variance_type": None,
}  # fmt: skip
# The keys of a config that a folder decides, besides the schedule's β.
_COMPARED = (
    "data.image_size", "data.channels", "data.rescaled", "data.logit_transform", "model.type", "model.ch",
    "model.ch_mult", "model.num_res_blocks", "model.attn_resolutions", "model.resamp_with_conv",
    "model.prediction",
    "diffusion.num_diffusion_timesteps",
)  # fmt: skip


def find(folder: Path, *names: str) -> Path:
    """The first of these files that the folder has, in unet/, in scheduler/ or by itself."""
    paths = [folder / part / name for name in names for part in ("unet", "scheduler", "")]
    return next((path for path in paths if path.is_file()), folder / names[0])


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder of diffusers."""
    return find(path, "config.json", INDEX).is_file()


def class_of(folder: Path) -> str:
    """The pipeline's class, or UNet2DModel. Raises Refusal for a pipeline of another kind."""
    index, classes = folder / INDEX, ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
    return _read_json(index, *classes)["_class_name"] if index.is_file() else "UNet2DModel"


def unknown_keys(folder: Path) -> list[str]:
    """The keys of config.json that UNet2DModel is not known to use."""
    keys = _read_json(find(folder, "config.json"), "UNet2DModel").keys()
    return sorted(keys - _DEFAULTS.keys() - _ALSO_KNOWN)


def read(folder: Path) -> Config:
    """The folder's network and schedule, with the data scaling and the training of a shipped config.

    Raises Refusal, naming the file and the key, if this program does not compute what the folder describes.
    """
    class_of(folder)
    network = _read_network(find(folder, "config.json"))
    return _read_schedule(find(folder, "scheduler_config.json"), network)


def clipping(folder: Path) -> tuple[str, str]:
    """What the scheduler does to x0: a name as --clip_x0 takes it, and the key that says so.

    Raises Refusal where it clips otherwise than --clip_x0 can.
    """
    path = find(folder, "scheduler_config.json")
    content = _read_json(path, *_SCHEDULERS) if path.is_file() else {}
    if content.get("thresholding"):
        _check_keys(
            path, {"dynamic_thresholding_ratio": 0.995} | content, {"dynamic_thresholding_ratio": [0.995]}
        )
        # diffusers bounds the threshold by sample_max_value, whose default of 1 leaves plain clipping.
        most = content.get("sample_max_value", 1)
        if most != 1 and most < 100:
            raise Refusal(
                f"{path}: sample_max_value is {most}; it must be 1, or 100 and more; or give --clip_x0"
            )
        return "on" if most == 1 else "dynamic", "thresholding"
    clips = content.get("_class_name") != "PNDMScheduler" and content.get("clip_sample", bool(content))
    if clips and content.get("clip_sample_range", 1) != 1:
        raise Refusal(
            f"{path}: clip_sample_range is {content['clip_sample_range']}; it must be 1; or give --clip_x0"
        )
    return "on" if clips else "off", "clip_sample"


def check(folder: Path, config: Config) -> None:
    """Raise Refusal, naming the first key that differs, if the folder has another network or schedule."""
    own, source = read(folder), f"{folder} does not fit the config"
    theirs, ours = (
        {f"{section}.{key}": value for section, part in _tree(c).items() for key, value in part.items()}
        for c in (own, config)
    )
    _check_keys(source, theirs, {key: [ours[key]] for key in _COMPARED})
    if not np.allclose(betas(own.diffusion), betas(config.diffusion), rtol=1e-5, atol=0):
        there, here = map(in_words, (own.diffusion, config.diffusion))
        raise Refusal(f"{source}: its schedule is {there}, and the config's is {here}")


def in_words(schedule: DiffusionConfig) -> str:
    return f"{schedule.beta_schedule} from {schedule.beta_start:g} to {schedule.beta_end:g}"


def to_json(config: Config) -> dict[str, dict[str, Any]]:
    """The JSON files of a DDIMPipeline: path → content. Raises Refusal, naming a key that diffusers lacks."""
    data, model, diffusion = config.data, config.model, config.diffusion
    for key, unknown_to_diffusers in (
        ("model.type bayesian", model.type == "bayesian"),
        ("model.resamp_with_conv false", not model.resamp_with_conv and len(model.ch_mult) > 1),
        (f"model.ch_mult beginning with {model.ch_mult[0]}", model.ch_mult[0] != 1),
        ("data.logit_transform", data.logit_transform),
        ("data.rescaled false", not data.rescaled),
    ):
        if unknown_to_diffusers:
            raise Refusal(f"{key} has no diffusers form; --export FILE.pth or FILE.safetensors keeps it")
    attention = ["Attn" if size in model.attn_resolutions else "" for size in _sizes(config)]
    network = {
        "sample_size": data.image_size, "in_channels": model.in_channels, "out_channels": model.out_ch,
        "block_out_channels": [model.ch * mult for mult in model.ch_mult],
        "layers_per_block": model.num_res_blocks,
        "down_block_types": [f"{attn}DownBlock2D" for attn in attention],
        "up_block_types": [f"{attn}UpBlock2D" for attn in reversed(attention)],
        "dropout": model.dropout,
    }  # fmt: skip
    scheduler = {
        "num_train_timesteps": diffusion.num_diffusion_timesteps,
        "beta_start": diffusion.beta_start, "beta_end": diffusion.beta_end,
        "trained_betas": None if diffusion.beta_schedule == "linear" else betas(diffusion).tolist(),
        "variance_type": model.var_type.replace("fixed", "fixed_"),
        "prediction_type": next(name for name, ours in PREDICTIONS.items() if ours == model.prediction),
    }  # fmt: skip
    parts = {"scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    index = {"_class_name": "DDIMPipeline", **parts}
    return {INDEX: index, UNET: _DEFAULTS | _OURS | network, SCHEDULER: _SCHEDULER | scheduler}


def _read_network(path: Path) -> Config:
    """A shipped config with the network and the image size of a config.json."""
    given = _read_json(path, "UNet2DModel")
    content = _DEFAULTS | given
    size, widths, blocks = (content[key] for key in ("sample_size", "block_out_channels", "down_block_types"))
    if isinstance(size, list) and size and all(side == size[0] for side in size):
        size = size[0]
    if not isinstance(size, int):
        raise Refusal(f"{path}: sample_size is {quoted(size)}; it must be the width of a square image")
    whole = isinstance(widths, list) and widths and all(isinstance(w, int) and w > 0 for w in widths)
    if not whole or any(width % widths[0] for width in widths):
        raise Refusal(f"{path}: block_out_channels is {quoted(widths)}; each must be a multiple of the first")
    if not isinstance(blocks, list) or len(blocks) != len(widths):
        raise Refusal(f"{path}: down_block_types is {quoted(blocks)}; it must have {len(widths)} entries")
    attends = ["Attn" in str(block) for block in blocks]

    # Make the config.
    channels = content["in_channels"]
    tree = _tree(load_config("bedroom.yml" if size >= 256 else "celeba.yml"))
    tree["data"] |= {"dataset": "FOLDER", "category": None, "image_size": size, "channels": channels}
    tree["model"] |= {
        "type": "simple", "in_channels": channels, "out_ch": content["out_channels"], "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths], "num_res_blocks": content["layers_per_block"],
        "dropout": content["dropout"], "resamp_with_conv": True,
        "attn_resolutions": [size // 2**i for i, attend in enumerate(attends) if attend],
    }  # fmt: skip
    config = config_from(tree, str(path))

    # Compare the file with the one that `to_json` would write, or that means the same.
    right = {key: [value] for key, value in to_json(config)[UNET].items()}
    right["act_fn"] += ["swish"]
    right["attn_norm_num_groups"] += [32]
    right["time_embedding_dim"] = [None, 4 * widths[0]]
    attended = {width for width, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]}
    right["attention_head_dim"] += attended if len(attended) == 1 else []  # one head as wide as all attention
    _check_keys(path, given | {"sample_size": size}, right)
    return config


def _read_schedule(path: Path, config: Config) -> Config:
    """`config` with the schedule of a scheduler_config.json, or with DDPM's without that file."""
    content = _SCHEDULER | (_read_json(path, *_SCHEDULERS) if path.is_file() else {})
    trained, T = content["trained_betas"], content["num_train_timesteps"]
    if trained is not None:
        content["beta_schedule"] = "linear"  # diffusers ignores it
    _check_keys(path, content, {
        "prediction_type": list(PREDICTIONS), "beta_schedule": list(SCHEDULES),
        "rescale_betas_zero_snr": [False],
        "variance_type": [None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"],
    })  # fmt: skip
    tree = _tree(config)
    tree["model"]["var_type"] = "fixedlarge" if "large" in str(content["variance_type"]) else "fixedsmall"
    tree["model"]["prediction"] = PREDICTIONS[content["prediction_type"]]
    tree["diffusion"] = {
        "beta_schedule": SCHEDULES[content["beta_schedule"]], "beta_start": content["beta_start"],
        "beta_end": content["beta_end"], "num_diffusion_timesteps": T,
    }  # fmt: skip
    config = config_from(tree, str(path))
    if trained is None:
        return config

    # Find the schedule whose β are `trained`, between the file's ends or the list's own.
    numbers = isinstance(trained, list) and all(isinstance(b, int | float) and 0 < b <= 1 for b in trained)
    if not numbers or len(trained) != T:
        raise Refusal(f"{path}: trained_betas must be as many numbers as num_train_timesteps, which is {T}")
    for start, end in ((content["beta_start"], content["beta_end"]), (trained[0], trained[-1])):
        for name in get_args(get_type_hints(DiffusionConfig)["beta_schedule"]):
            schedule = DiffusionConfig(name, start, end, T)
            if np.allclose(betas(schedule), trained, rtol=1e-6, atol=0):
                return replace(config, diffusion=schedule)
    raise Refusal(f"{path}: trained_betas are none of the schedules that diffusion.beta_schedule can name")


def _read_json(path: Path, *classes: str) -> dict[str, Any]:
    """The JSON object of a file that describes one of `classes`."""
    with door.reading(path, "valid JSON"):  # diffusers' first releases put UNetRes before the names of blocks
        content = json.loads(door.read_text(path, "valid JSON").replace('"UNetRes', '"'))
    if not isinstance(content, dict):
        raise Refusal(f"{path} holds a {type(content).__name__}; it must be an object")
    _check_keys(path, content, {"_class_name": list(classes)})
    return content


def _check_keys(source: Path | str, content: dict[str, Any], right: dict[str, list[Any]]) -> None:
    """Raise Refusal for the first key with a wrong value. For an omitted key its default counts."""
    for key, values in right.items():
        value = content.get(key, _DEFAULTS.get(key, values[0]))
        if value not in values:
            omitted = "" if key in content else " where it is omitted"
            choices = " or ".join(map(json.dumps, values))
            raise Refusal(f"{source}: {key} is {json.dumps(value)}{omitted}; it must be {choices}")


def _tree(config: Config) -> dict[str, Any]:
    """The config as YAML has it, with attention only at resolutions that the network has."""
    tree = yaml.safe_load(to_yaml(config))
    tree["model"]["attn_resolutions"] = [r for r in _sizes(config) if r in config.model.attn_resolutions]
    return tree


def _sizes(config: Config) -> list[int]:
    """The resolution of each level."""
    return [config.data.image_size // 2**level for level in range(len(config.model.ch_mult))]
