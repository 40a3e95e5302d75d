"""The trained network that a command names."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch

from configs import Config
from configs.options import Options
from functions.weights import load_for, pretrained
from functions.weights.checkpoint import Checkpoint
from runners.diffusion import Diffusion


class Loaded(NamedTuple):
    """A checkpoint's file, which of its weights were taken ("ema", "raw", or a "bare" state dict's), its step or 0, its name.

    The name is the one that --ckpt gave or that its weights were published by, else the path.
    """

    path: Path
    kind: str
    step: int
    name: str


def load_diffusion(options: Options, config: Config, device: torch.device) -> tuple[Diffusion, Path, str]:
    """The network with the weights asked for, their file, and whether they are "ema", "raw" or a "bare" state dict's."""
    diffusion = new_diffusion(options, config, device)
    loaded = load_weights(diffusion, options)
    return diffusion, loaded.path, loaded.kind


def new_diffusion(options: Options, config: Config, device: torch.device) -> Diffusion:
    """A network yet without weights, that computes as the options ask."""
    diffusion = Diffusion(config, device)
    diffusion.accelerate(options.precision)
    return diffusion


def load_weights(diffusion: Diffusion, options: Options) -> Loaded:
    """Give `diffusion` the weights asked for, in the place of those it has."""
    checkpoint, path = load_named(options, diffusion.config)
    kind = diffusion.load(checkpoint, options.weights, str(path))
    of_step = f", step {checkpoint.step}" if checkpoint.step else ""
    logging.info(f"weights: {path} ({kind}{of_step})")
    published = pretrained.for_data(diffusion.config.data).name if options.use_pretrained else None
    return Loaded(path, kind, checkpoint.step, options.ckpt or published or str(path))


def load_named(options: Options, config: Config) -> tuple[Checkpoint, Path]:
    """The checkpoint of --ckpt, --use_pretrained or the run, and its file or folder."""
    if options.ckpt is not None:
        path = pretrained.locate(options.ckpt)
    elif options.use_pretrained:
        path = pretrained.get(pretrained.for_data(config.data))
    else:
        path = local_checkpoint(options, config)
    return load_for(config, path), path


def local_checkpoint(options: Options, config: Config) -> Path:
    """Where the weights asked for lie, or will once they are downloaded."""
    if options.ckpt is not None:
        return pretrained.local(options.ckpt)
    if options.use_pretrained:
        return pretrained.for_data(config.data).path
    ckpt_id = config.sampling.ckpt_id
    return options.log_dir / ("ckpt.pth" if ckpt_id is None else f"ckpt_{ckpt_id}.pth")
