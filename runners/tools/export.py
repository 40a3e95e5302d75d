"""Weights for other programs: diffusers' folder, upstream's list, or a safetensors file; read back before it is believed."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from configs import Config
from configs.options import Options
from configs.refusal import Refusal
from functions.noise import initial_noise
from functions.runtime import distributed
from functions.weights import (
    check_fit,
    diffusers,
    diffusers_config,
    load_checkpoint,
    load_into,
    storage,
    upstream,
)
from functions.weights.checkpoint import Checkpoint
from runners.diffusion import build_unet
from runners.load import load_named
from runners.training.state import build_optimizer

HALF = ".fp16.safetensors"  # the end of a name that asks for half precision, as diffusers names its own


def export(options: Options, config: Config, device: torch.device) -> None:
    """Write what --export names, load it again, and print how far one forward pass differs."""
    path = Path(options.export or "")
    if path.suffix not in (".pth", ".safetensors"):
        diffusers_config.write(
            config
        )  # refuses what diffusers has no form for, before anything is downloaded
    checkpoint, source = load_named(options, config)
    if path.suffix == ".pth":
        checkpoint = _for_upstream(checkpoint, config)
        written = {"raw": checkpoint.model} | ({"ema": checkpoint.ema} if checkpoint.ema else {})
    else:
        chosen, which = checkpoint.select(options.weights, str(source))
        written = {which: chosen}
    for weights in written.values():
        check_fit(build_unet(config), weights, str(source))
    if not distributed.is_main():
        return

    if path.suffix == ".pth":
        what = "upstream's list"
        storage.save(path, upstream.pack(checkpoint))
    elif path.suffix == ".safetensors":
        half = path.name.endswith(HALF)
        what = "bare weights in half precision" if half else "bare weights"
        storage.save_safetensors(path, _halved(chosen, path) if half else chosen)
    else:
        what = "a diffusers DDIMPipeline folder"
        diffusers.save(path, chosen, config)

    again = load_checkpoint(path)
    difference = max(
        _difference(config, device, weights, again.ema if which == "ema" and again.ema else again.model)
        for which, weights in written.items()
    )
    kinds = " and ".join(written)
    print(
        f"{path}: {what}, from the {kinds} weights of {source}; read back, a forward pass differs by at most {difference:g}"
    )


def _halved(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """As float16. Raises Refusal where a weight is too large for it."""
    half = {name: value.half() for name, value in weights.items()}
    too_large = next((name for name, value in half.items() if not value.isfinite().all()), None)
    if too_large is not None:
        raise Refusal(
            f"--export {path}: {too_large} does not fit half precision; a name without .fp16 keeps float32"
        )
    return half


def _for_upstream(checkpoint: Checkpoint, config: Config) -> Checkpoint:
    """With all that upstream's program reads: the average it samples from, and an optimizer to resume with."""
    if checkpoint.ema is None and config.model.ema:
        logging.info("there is one set of weights: it is written as the raw weights and as the EMA")
        checkpoint = replace(checkpoint, ema=checkpoint.model)
    if checkpoint.optimizer is None:
        logging.info(
            "there is no optimizer's state: a fresh one is written, for sampling; training cannot continue exactly"
        )
        checkpoint = replace(
            checkpoint, optimizer=build_optimizer(build_unet(config), config.optim).state_dict()
        )
    return checkpoint


@torch.no_grad()
def _difference(config: Config, device: torch.device, a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of the two networks' ε for one image of noise, halfway along the schedule."""
    model, data = build_unet(config).to(device).eval(), config.data
    x = initial_noise(0, [0], (data.channels, data.image_size, data.image_size)).to(device)
    t = torch.tensor([config.diffusion.num_diffusion_timesteps // 2], device=device)
    outputs = []
    for weights in (a, b):
        load_into(model, weights, "what was written")
        outputs.append(model(x, t))
    return (outputs[0] - outputs[1]).abs().max().item()
