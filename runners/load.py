"""The trained network that a command names."""

import logging
from pathlib import Path

import torch

from configs import Config
from configs.options import Options
from functions.weights import load_for, pretrained
from functions.weights.checkpoint import Checkpoint
from runners.diffusion import Diffusion


def load_diffusion(options: Options, config: Config, device: torch.device) -> tuple[Diffusion, Path, str]:
    """The network with the weights asked for, their file, and whether they are "ema", "raw" or a "bare" state dict's."""
    checkpoint, path = load_named(options, config)
    diffusion = Diffusion(config, device)
    which = diffusion.load(checkpoint, options.weights, str(path))
    diffusion.accelerate(options.precision)
    of_step = f", step {checkpoint.step}" if checkpoint.step else ""
    logging.info(f"weights: {path} ({which}{of_step})")
    return diffusion, path, which


def load_named(options: Options, config: Config) -> tuple[Checkpoint, Path]:
    """The checkpoint of --ckpt, --use_pretrained or the run, and its file or folder."""
    if options.ckpt is not None:
        path = pretrained.locate(options.ckpt)
    elif options.use_pretrained:
        path = pretrained.get(pretrained.for_data(config.data))
    else:
        ckpt_id = config.sampling.ckpt_id
        path = options.log_dir / ("ckpt.pth" if ckpt_id is None else f"ckpt_{ckpt_id}.pth")
    return load_for(config, path), path
