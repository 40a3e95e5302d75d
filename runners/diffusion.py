"""`Diffusion`: a U-Net, its noise schedule and its device, and what they do together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs import Config
from datasets.scaling import from_model_range
from functions import weights
from functions.denoising import Step, ddpm_noisy, generalized, last
from functions.images import to_uint8
from functions.noise import initial_noise, step_noise
from functions.schedules import alphas_cumprod, betas, select_timesteps
from functions.weights.checkpoint import Checkpoint
from models.unet import UNet


@dataclass(frozen=True)
class Sampling:
    """What decides the images of a network, and nothing else."""

    timesteps: tuple[int, ...]  # τ, ascending
    sample_type: str
    eta: float
    seed: int


class Diffusion:
    """The network of `config` on `device`, in evaluation mode, with the weights of a fresh initialisation until `load`."""

    def __init__(self, config: Config, device: torch.device):
        self.config = config
        self.device = device
        self.model = build_unet(config).to(device).eval()
        self.alphas_cumprod = alphas_cumprod(betas(config.diffusion))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        data = self.config.data
        return data.channels, data.image_size, data.image_size

    def load(self, checkpoint: Checkpoint, which: str | None, source: str) -> str:
        """Take a checkpoint's "ema" or "raw" weights (None: ema where it has them) and return which it was, or "bare".

        Raises ValueError where they are not there or do not fit the config; `source` names the file in it.
        """
        if which == "ema" and checkpoint.ema is None:
            raise ValueError(f"{source} has no EMA weights; --weights raw takes the ones it has")
        if which == "raw" or checkpoint.ema is None:
            weights.load_into(self.model, checkpoint.model, source)
            return "bare" if checkpoint.optimizer is None else "raw"
        weights.load_into(self.model, checkpoint.ema, source)
        return "ema"

    def timesteps(self, skip_type: str, S: int, *, keep_repeats: bool = False) -> tuple[int, ...]:
        """τ for this schedule. A repeated timestep changes nothing, so repeats are dropped unless they are counted.

        Raises ValueError where τ holds a timestep at which nothing is left of the image (ᾱ = 0).
        """
        chosen = select_timesteps(skip_type, S, len(self.alphas_cumprod) - 1)
        gone = [t for t in chosen if self.alphas_cumprod[t + 1] == 0]
        if gone:
            raise ValueError(
                f"--timesteps {S} with {skip_type} begins at t = {gone[0]}, where the schedule "
                f"{self.config.diffusion.beta_schedule} has ᾱ = 0 and x0 is infinite; take fewer timesteps"
            )
        return tuple(chosen if keep_repeats else dict.fromkeys(chosen))

    def denoise(self, x: Tensor, indices: Sequence[int], sampling: Sampling) -> Iterator[Step]:
        """The steps from x (b, c, h, w), float32 on any device, with the step noise of the images `indices`."""
        x = x.to(self.device)
        randn_like = step_noise(sampling.seed, indices)
        arguments = (self.model, x, sampling.timesteps, self.alphas_cumprod)
        if sampling.sample_type == "ddpm_noisy":
            return ddpm_noisy(*arguments, randn_like=randn_like)
        return generalized(*arguments, eta=sampling.eta, randn_like=randn_like)

    def sample(self, indices: Iterable[int], sampling: Sampling, batch_size: int) -> Iterator[tuple[int, Tensor]]:
        """Each of the images `indices` as (index, uint8 (c, h, w) on the CPU), in ascending order."""
        for wanted, images in self.sample_batches(indices, sampling, batch_size):
            yield from zip(wanted, images.cpu(), strict=True)

    def sample_batches(self, indices: Iterable[int], sampling: Sampling, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        """The images `indices` as (some of them, uint8 (b, c, h, w) on the device), in ascending order.

        The unit of work is the aligned batch {k·B … k·B+B-1}: computed whole, so that an image does not depend
        on which others were asked for.
        """
        wanted = set(indices)
        for k in sorted({i // batch_size for i in wanted}):
            batch = range(k * batch_size, (k + 1) * batch_size)
            x_T = initial_noise(sampling.seed, batch, self.image_shape)
            x = last(self.denoise(x_T, batch, sampling)).x
            rows = [row for row, i in enumerate(batch) if i in wanted]
            yield [batch[row] for row in rows], self.to_images(x)[rows]

    def to_images(self, x: Tensor) -> Tensor:
        """The model's range (b, c, h, w) -> uint8 on the same device. Raises FloatingPointError for NaN or infinity."""
        if not x.isfinite().all():
            raise FloatingPointError("the network's output is not finite, so there is no image; are the weights sound?")
        return to_uint8(from_model_range(x, self.config.data))


def build_unet(config: Config) -> UNet:
    """The network that a config describes."""
    model = config.model
    return UNet(
        image_size=config.data.image_size,
        in_channels=model.in_channels,
        out_ch=model.out_ch,
        ch=model.ch,
        ch_mult=model.ch_mult,
        num_res_blocks=model.num_res_blocks,
        attn_resolutions=model.attn_resolutions,
        dropout=model.dropout,
        resamp_with_conv=model.resamp_with_conv,
        logvar_timesteps=config.diffusion.num_diffusion_timesteps if model.type == "bayesian" else 0,
    )
