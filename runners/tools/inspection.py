"""What a checkpoint is, in a few lines."""

from pathlib import Path

import torch

from configs import CONFIG_DIR, Config, load_config
from configs.options import Options
from configs.refusal import Refusal
from functions.disk import files
from functions.runtime import distributed
from functions.weights import check_fit, diffusers_config, identify, pretrained, weights_hash
from functions.weights.architecture import infer
from functions.weights.checkpoint import Checkpoint
from runners.diffusion import build_unet


def inspect(options: Options, config: Config | None) -> None:
    """Print the format, the network, the weights and their hash, the step, and the configs it fits."""
    path = pretrained.locate(options.inspect or "")
    format_, checkpoint = identify(path)
    if not distributed.is_main():
        return
    lines = {"checkpoint": str(path), "format": format_, "network": str(infer(checkpoint.model, str(path)))}
    lines["parameters"] = (
        f"{sum(value.numel() for value in checkpoint.model.values()):,} in {len(checkpoint.model)} tensors"
    )
    lines |= _weights(checkpoint) | _origin(path)
    lines["training"] = _training(checkpoint)
    if diffusers_config.is_folder(path):
        diffusion = diffusers_config.read(path).diffusion
        lines["schedule"] = (
            f"{diffusion.beta_schedule} from {diffusion.beta_start:g} to {diffusion.beta_end:g}, "
            f"{diffusion.num_diffusion_timesteps} timesteps"
        )
    shipped = {file.name: load_config(file.name) for file in sorted(CONFIG_DIR.glob("*.yml"))}
    lines["fits"] = (
        ", ".join(name for name, c in shipped.items() if _misfit(path, checkpoint, c) is None)
        or "no shipped config"
    )
    if config is not None:
        lines[options.config] = _misfit(path, checkpoint, config) or "fits"
    for name, line in lines.items():
        print(f"{name}: {line}")


def _weights(checkpoint: Checkpoint) -> dict[str, str]:
    """Which sets there are, how far they differ, and the hash of each, which is the one in manifests."""
    raw, ema = checkpoint.model, checkpoint.ema
    if ema is None:
        kind = (
            "one set, not said whether raw or EMA" if checkpoint.optimizer is None else "raw, without an EMA"
        )
        return {"weights": kind, "hash": weights_hash(raw)}
    common = [name for name in raw if name in ema and raw[name].shape == ema[name].shape]
    difference, where = max(
        ((raw[name].float() - ema[name].float()).abs().max().item(), name) for name in common
    )
    differ = f"they differ by up to {difference:g}, in {where}" if difference else "they are equal"
    return {
        "weights": f"raw and EMA; {differ}",
        "hash (raw)": weights_hash(raw),
        "hash (EMA)": weights_hash(ema),
    }


def _origin(path: Path) -> dict[str, str]:
    """Whose weights a file is, where its md5 is a published one."""
    if path.is_dir():
        return {}
    md5 = files.digest(path, "md5")
    names = [weights.name for weights in pretrained.PUBLISHED.values() if weights.md5 == md5]
    return {"md5": md5 + (f", that of the published {names[0]}" if names else "")}


def _training(checkpoint: Checkpoint) -> str:
    if checkpoint.optimizer is None:
        return "no step, epoch or optimizer: training cannot continue from it"
    state = "its state" if checkpoint.optimizer.get("state") else "no state"
    return f"step {checkpoint.step}, epoch {checkpoint.epoch}, an optimizer with {state}"


def _misfit(path: Path, checkpoint: Checkpoint, config: Config) -> str | None:
    """Why the checkpoint does not fit the config, or None."""
    try:
        if diffusers_config.is_folder(path):
            diffusers_config.check(path, config)
        with torch.device("meta"):
            check_fit(build_unet(config), checkpoint.model, str(path))
    except Refusal as error:
        return str(error)
    return None
