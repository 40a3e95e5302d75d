"""The weights that a command names: where they are, and `Diffusion` with them."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from configs import Config
from configs.options import Options
from functions.weights import diffusers_config, load_for, pretrained, weights_hash
from functions.weights.checkpoint import Checkpoint
from functions.weights.published import PUBLISHED
from runners.diffusion import Diffusion


class Loaded(NamedTuple):
    """Weights that were loaded."""

    path: Path
    kind: str  # "ema", "raw", or "bare" for a state dict that does not say
    step: int  # 0 where it is not known
    name: str  # as --ckpt gave it or as it was published, else the path
    hash: str  # over the tensors, the same in every format


def load_weights(diffusion: Diffusion, options: Options) -> Loaded:
    """Load the weights that --ckpt, --use_pretrained or --doc name, and log which they are."""
    checkpoint, path = load_named(options, diffusion.config)
    kind = diffusion.load(checkpoint, options.weights, str(path))
    step = f", step {checkpoint.step}" if checkpoint.step else ""
    logging.info(f"weights: {path} ({kind}{step})")
    published = pretrained.for_data(diffusion.config.data).name if options.use_pretrained else None
    name = options.ckpt or published or str(path)
    return Loaded(path, kind, checkpoint.step, name, weights_hash(diffusion.model.state_dict()))


def with_own_clipping(options: Options) -> Options:
    """With the --clip_x0 that a diffusers folder's scheduler has, where the command does not give one."""
    ckpt = options.ckpt
    if options.clip_x0 is not None or ckpt is None:
        return options
    if options.plan and not Path(ckpt).exists():
        return options  # it would take a download to know
    path = pretrained.locate(ckpt)
    clip_x0, key = diffusers_config.clipping(path) if diffusers_config.is_folder(path) else ("off", "")
    if clip_x0 == "off":
        return options
    logging.info(f"the folder's scheduler has {key}: --clip_x0 {clip_x0}, unless the command says another")
    return replace(options, clip_x0=clip_x0)


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
    """Where those weights are, or will be once they are downloaded."""
    ckpt = options.ckpt
    if ckpt is not None:
        return PUBLISHED[ckpt].path if ckpt in PUBLISHED and not Path(ckpt).exists() else Path(ckpt)
    if options.use_pretrained:
        return pretrained.for_data(config.data).path
    ckpt_id = config.sampling.ckpt_id
    return options.log_dir / ("ckpt.pth" if ckpt_id is None else f"ckpt_{ckpt_id}.pth")
