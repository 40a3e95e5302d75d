"""Settings that are valid and seldom meant. Training and sampling say so in the log."""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from configs import Config
from configs.machine import memory
from functions.schedules import alpha_bar

MOST_SIGNAL = 0.01  # ᾱ_T; DDPM's schedule leaves 4e-5
MOST_OF_AN_IMAGE = 0.9  # ᾱ of the first step that is sampled
MOST_OF_THE_FIRST = 0.01  # of the weights that training began with, in the average at its end
KEPT_BY_A_BLOCK = 4  # tensors of its size, at least, which a residual block keeps for the backward pass


def say(config: Config, alphas_cumprod: Tensor) -> None:
    """Warn of a schedule that leaves signal at T, and of attention at resolutions that no level has.

    alphas_cumprod: (T + 1,), from ᾱ = 1 of clean images to ᾱ_T.
    """
    diffusion, model, last = config.diffusion, config.model, alphas_cumprod[-1].item()
    if last > MOST_SIGNAL:
        logging.warning(
            f"the schedule leaves signal at its end: ᾱ is {last:.2g} at the last of "
            f"{diffusion.num_diffusion_timesteps} timesteps, so the network never sees the pure noise that "
            "sampling starts from; take more timesteps or a larger diffusion.beta_end"
        )
    levels = [config.data.image_size // 2**level for level in range(len(model.ch_mult))]
    unmet = [size for size in model.attn_resolutions if size not in levels]
    if unmet:
        logging.warning(
            f"model.attn_resolutions has {', '.join(map(str, unmet))}, and no level of the network has that "
            f"size (they have {', '.join(map(str, levels))}): there is no attention for it"
        )


def say_of_training(config: Config, steps: int, images: int, device: torch.device, precision: str) -> None:
    """Warn of a warm-up or an average too slow for a run of `steps`, and of a batch too large for the memory.

    images: of a batch in this process.
    """
    model, training, warmup = config.model, config.training, config.optim.warmup
    if warmup >= steps:
        logging.warning(
            f"optim.warmup is {warmup:,} and the run has {steps:,} steps: the learning rate never reaches "
            f"optim.lr; a tenth of the steps is plenty"
        )
    left = model.ema_rate**steps
    if model.ema and not model.ema_warmup and left > MOST_OF_THE_FIRST:
        logging.warning(
            f"model.ema_rate {model.ema_rate:g} is slow for {steps:,} steps: {left:.0%} of the averaged "
            "weights will still be those that training begins with; model.ema_warmup: true helps"
        )
    images = -(-images // training.accumulate)
    needed = images * _numbers_kept(config) * (2 if precision == "bf16" else 4)
    most = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory()
    if needed > most:
        logging.warning(
            f"a step on {images} images needs at least {needed / 2**30:.1f} GiB and {device} has "
            f"{most / 2**30:.1f} GiB; training.accumulate: {training.accumulate * -(-needed // most)}, or "
            "more, does a batch in parts"
        )


def _numbers_kept(config: Config) -> int:
    """Numbers that the forward pass keeps for an image, at least: those of the residual blocks."""
    model, size = config.model, config.data.image_size
    blocks = 2 * model.num_res_blocks + 1  # of a level, down and up
    levels = [model.ch * width * (size >> level) ** 2 for level, width in enumerate(model.ch_mult)]
    return KEPT_BY_A_BLOCK * blocks * sum(levels)


def say_of_steps(timesteps: Iterable[float], alphas_cumprod: Tensor, spacing: str) -> None:
    """Warn where the first step expects an image with a little noise, and gets the pure noise of x_T."""
    first = max(timesteps)
    if (signal := alpha_bar(alphas_cumprod, first)) > MOST_OF_AN_IMAGE:
        logging.warning(
            f"the first step is at t = {first:g}, where ᾱ is {signal:.2g}: the network expects an image "
            f"there and gets pure noise; {spacing} puts so few steps near the start of the schedule, "
            "--skip_type trailing begins at its end"
        )
