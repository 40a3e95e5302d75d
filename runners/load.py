"""The trained network that a command names."""

import logging
from pathlib import Path

import torch

from configs import Config
from configs.options import Options
from functions import distributed
from functions.weights import load_checkpoint, pretrained
from runners.diffusion import Diffusion


def load_diffusion(options: Options, config: Config, device: torch.device) -> tuple[Diffusion, Path, str]:
    """The network with the weights asked for, their file, and whether they are "ema", "raw" or a "bare" state dict's."""
    path = _checkpoint_path(options, config)
    checkpoint = load_checkpoint(path)
    diffusion = Diffusion(config, device)
    which = diffusion.load(checkpoint, options.weights, str(path))
    diffusion.accelerate(options.precision)
    of_step = f", step {checkpoint.step}" if checkpoint.step else ""
    logging.info(f"weights: {path} ({which}{of_step})")
    return diffusion, path, which


def _checkpoint_path(options: Options, config: Config) -> Path:
    if options.ckpt is not None:
        return Path(options.ckpt)
    if options.use_pretrained:
        with distributed.main_first():
            return pretrained.fetch(pretrained.published_weights(config.data))
    ckpt_id = config.sampling.ckpt_id
    return options.log_dir / ("ckpt.pth" if ckpt_id is None else f"ckpt_{ckpt_id}.pth")
