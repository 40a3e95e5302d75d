"""Weights for other programs: a diffusers folder, upstream's list, or safetensors; read back once written."""

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
from runners.diffusion import Diffusion, build_unet
from runners.load import load_named
from runners.training.state import build_optimizer


def export(diffusion: Diffusion, options: Options) -> None:
    """Write what --export names, load it again, and print how far one forward pass differs."""
    path, config, device = Path(options.export), diffusion.config, diffusion.device
    if path.suffix not in (".pth", ".safetensors"):
        diffusers_config.to_json(config)  # may refuse, and does so before a download

    # Choose the weights.
    checkpoint, source = load_named(options, config)
    if path.suffix == ".pth":
        checkpoint = _for_upstream(checkpoint, config)
        chosen = {"raw": checkpoint.model} | ({"ema": checkpoint.ema} if checkpoint.ema else {})
    else:
        weights, kind = checkpoint.select(options.weights, str(source))
        chosen = {kind: weights}
    for each in chosen.values():
        check_fit(build_unet(config), each, str(source))
    if not distributed.is_main():
        return

    # Write them.
    if path.suffix == ".pth":
        what = "upstream's list"
        storage.save(path, upstream.pack(checkpoint), new=True)
    elif path.name.endswith(".fp16.safetensors"):  # diffusers' way to name half precision
        what = "bare weights in half precision"
        storage.save_safetensors(path, _halved(weights, path))
    elif path.suffix == ".safetensors":
        what = "bare weights"
        storage.save_safetensors(path, weights)
    else:
        what = "a diffusers DDIMPipeline folder"
        diffusers.save(path, weights, config)

    # Read them back.
    again = load_checkpoint(path)
    read = [again.model] + ([again.ema] if again.ema else [])
    pairs = zip(chosen.values(), read, strict=True)
    difference = max(_difference(config, device, before, after) for before, after in pairs)
    print(
        f"{path}: {what}, from the {' and '.join(chosen)} weights of {source}; "
        f"read back, a forward pass differs by at most {difference:g}"
    )


def _halved(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights as float16. Raises Refusal if one is too large for it."""
    half = {name: value.half() for name, value in weights.items()}
    for name, value in half.items():
        if not value.isfinite().all():
            raise Refusal(f"--export {path}: {name} does not fit half precision; without .fp16 it is float32")
    return half


def _for_upstream(checkpoint: Checkpoint, config: Config) -> Checkpoint:
    """The checkpoint with all that upstream reads: an EMA to sample from, and an optimizer to resume with."""
    if checkpoint.ema is None and config.model.ema:
        logging.info("there is one set of weights: it is written as the raw weights and as the EMA")
        checkpoint = replace(checkpoint, ema=checkpoint.model)
    if checkpoint.optimizer is None:
        logging.info("there is no optimizer's state: with a new one, training cannot continue exactly")
        optimizer = build_optimizer(build_unet(config), config.optim)
        checkpoint = replace(checkpoint, optimizer=optimizer.state_dict())
    return checkpoint


@torch.no_grad()
def _difference(config: Config, device: torch.device, *both: dict[str, Tensor]) -> float:
    """The largest difference of the two networks' ε for one image of noise, halfway along the schedule."""
    model, data = build_unet(config).to(device).eval(), config.data
    x = initial_noise(0, [0], data.shape).to(device)
    t = torch.tensor([config.diffusion.num_diffusion_timesteps // 2], device=device)
    outputs = []
    for weights in both:
        load_into(model, weights, "what was written")
        outputs.append(model(x, t))
    return (outputs[0] - outputs[1]).abs().max().item()
