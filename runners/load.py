"""The trained network that a command names."""

import logging
from pathlib import Path
from typing import NamedTuple

import torch

from configs import Config
from configs.options import Options
from functions import distributed
from functions.weights import load_checkpoint, pretrained
from runners.diffusion import Diffusion


class Loaded(NamedTuple):
    """A checkpoint's file, which of its weights were taken ("ema", "raw", or a "bare" state dict's), and its step or 0."""

    path: Path
    kind: str
    step: int


def load_diffusion(options: Options, config: Config, device: torch.device) -> tuple[Diffusion, Path, str]:
    """The network with the weights asked for, their file, and whether they are "ema", "raw" or a "bare" state dict's."""
    diffusion = Diffusion(config, device)
    path, kind, _ = load_weights(diffusion, options)
    return diffusion, path, kind


def load_weights(diffusion: Diffusion, options: Options) -> Loaded:
    """Give `diffusion` the weights asked for, in the place of those it has."""
    path = checkpoint_path(options, diffusion.config)
    checkpoint = load_checkpoint(path)
    kind = diffusion.load(checkpoint, options.weights, str(path))
    of_step = f", step {checkpoint.step}" if checkpoint.step else ""
    logging.info(f"weights: {path} ({kind}{of_step})")
    return Loaded(path, kind, checkpoint.step)


def checkpoint_path(options: Options, config: Config) -> Path:
    """The file with the weights asked for; published ones are fetched."""
    path = local_checkpoint(options, config)
    if path is not None:
        return path
    with distributed.main_first():
        return pretrained.fetch(pretrained.published_weights(config.data))


def local_checkpoint(options: Options, config: Config) -> Path | None:
    """The file with the weights asked for, None for published ones."""
    if options.ckpt is not None:
        return Path(options.ckpt)
    if options.use_pretrained:
        return None
    ckpt_id = config.sampling.ckpt_id
    return options.log_dir / ("ckpt.pth" if ckpt_id is None else f"ckpt_{ckpt_id}.pth")
