"""Settings that are valid and seldom meant. Training and sampling say so in the log."""

import logging

from torch import Tensor

from configs import Config

MOST_SIGNAL = 0.01  # ᾱ_T; DDPM's schedule leaves 4e-5


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
