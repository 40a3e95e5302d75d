"""`Diffusion`: a U-Net, its noise schedule and its device, and what they do together."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs import Config
from configs.arguments import DEFAULT_SEED
from configs.refusal import Refusal
from datasets.scaling import from_model_range
from functions import weights
from functions.disk.images import to_uint8
from functions.noise import initial_noise, step_noise
from functions.runtime import acceleration
from functions.runtime import device as devices
from functions.runtime.threads import pinned, prefetch, to_host, works_beside
from functions.samplers import Step, ddpm_noisy, generalized, last
from functions.schedules import alphas_cumprod, betas, select_timesteps
from functions.weights import pretrained
from functions.weights.checkpoint import Checkpoint
from models.fused import fuse, refresh
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
        self.model = build_unet(config).eval().to(device).to(memory_format=acceleration.memory_format(device))
        self.network: acceleration.Network | UNet = self.model  # what denoises
        self.alphas_cumprod = alphas_cumprod(betas(config.diffusion))

    @classmethod
    def from_pretrained(
        cls, ckpt: str, config: Config | None = None, *, device: str | None = None, which: str | None = None
    ) -> "Diffusion":
        """The network of anything that --ckpt takes: a path, a diffusers folder, hf://owner/name, or a published name.

        config: where none comes with it. device: the best there is. which: "ema" or "raw", ema where there is one.
        Raises Refusal where it can't be had or does not fit.
        """
        config = config or pretrained.own_config(ckpt)
        path = pretrained.locate(ckpt)
        diffusion = cls(config, devices.choose_device(device))
        diffusion.load(weights.load_for(config, path), which, str(path))
        return diffusion

    @property
    def image_shape(self) -> tuple[int, int, int]:
        data = self.config.data
        return data.channels, data.image_size, data.image_size

    def load(self, checkpoint: Checkpoint, which: str | None, source: str) -> str:
        """Take a checkpoint's "ema" or "raw" weights (None: ema where it has them) and return which it was, or "bare".

        Raises Refusal where they are not there or do not fit the config; `source` names the file in it.
        """
        chosen, kind = checkpoint.select(which, source)
        weights.load_into(self.model, chosen, source)
        if isinstance(self.network, acceleration.Network) and self.network.model is not self.model:
            refresh(self.network.model, self.model)
        return kind

    def accelerate(self, precision: str) -> None:
        """Evaluate by a copy made for speed from now on, in `precision`; it follows what `load` takes, not training."""
        self.network = acceleration.Network(
            fuse(self.model, torch.bfloat16) if precision == "bf16" else self.model
        )

    def evaluate(self, batch_size: int) -> Tensor:
        """One evaluation of the network, of noise: to measure its time and its memory. float32 (b, c, h, w)"""
        x = torch.randn(batch_size, *self.image_shape, device=self.device)
        with torch.no_grad():
            return self.network(x, torch.zeros(batch_size, dtype=torch.long, device=self.device))

    def timesteps(self, skip_type: str, S: int, *, keep_repeats: bool = False) -> tuple[int, ...]:
        """τ for this schedule. A repeated timestep changes nothing, so repeats are dropped unless they are counted.

        Raises Refusal where τ holds a timestep at which nothing is left of the image (ᾱ = 0).
        """
        chosen = select_timesteps(skip_type, S, len(self.alphas_cumprod) - 1)
        gone = [t for t in chosen if self.alphas_cumprod[t + 1] == 0]
        if gone:
            raise Refusal(
                f"--timesteps {S} with {skip_type} begins at t = {gone[0]}, where the schedule "
                f"{self.config.diffusion.beta_schedule} has ᾱ = 0 and x0 is infinite; take fewer timesteps"
            )
        return tuple(chosen if keep_repeats else dict.fromkeys(chosen))

    def denoise(self, x: Tensor, indices: Sequence[int], sampling: Sampling) -> Iterator[Step]:
        """The steps from x (b, c, h, w), float32 on any device, with the step noise of the images `indices`."""
        x = x.to(
            self.device,
            memory_format=acceleration.memory_format(self.device),
            non_blocking=self.device.type == "cuda",
        )
        arguments = (self.network, x, sampling.timesteps, self.alphas_cumprod)
        if sampling.sample_type == "generalized" and sampling.eta == 0:
            return generalized(*arguments, eta=0.0, randn_like=torch.randn_like)  # which is not called
        randn_like = step_noise(
            sampling.seed, indices, self.image_shape, len(sampling.timesteps), self.device
        )
        if sampling.sample_type == "ddpm_noisy":
            return ddpm_noisy(*arguments, randn_like=randn_like)
        return generalized(*arguments, eta=sampling.eta, randn_like=randn_like)

    def sample(
        self,
        n: int | Iterable[int],
        *,
        timesteps: int = 50,
        eta: float = 0.0,
        seed: int = DEFAULT_SEED,
        skip_type: str = "uniform",
        sample_type: str = "generalized",
        batch_size: int | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """n images, or those of the given indices: (index, uint8 (c, h, w)), the same that --sample --fid writes.

        batch_size: the config's, or fewer where fewer are asked. Raises Refusal for values that the flags refuse.
        """
        T = len(self.alphas_cumprod) - 1
        for name, value, right, what in (
            ("timesteps", timesteps, 1 <= timesteps <= T, f"from 1 to {T}"),
            ("eta", eta, 0 <= eta <= 1, "from 0 to 1"),
            ("seed", seed, 0 <= seed < 2**32, f"from 0 to {2**32 - 1}"),
            ("skip_type", skip_type, skip_type in ("uniform", "quad"), "uniform or quad"),
            (
                "sample_type",
                sample_type,
                sample_type in ("generalized", "ddpm_noisy"),
                "generalized or ddpm_noisy",
            ),
        ):
            if not right:
                raise Refusal(f"{name} is {value!r}; it must be {what}")
        indices = list(range(n) if isinstance(n, int) else n)
        batch_size = batch_size or min(self.config.sampling.batch_size, max(indices, default=0) + 1)
        sampling = Sampling(self.timesteps(skip_type, timesteps), sample_type, eta, seed)
        batches = self.sample_batches(indices, sampling, batch_size)
        return (pair for made, images in batches for pair in zip(made, images.cpu(), strict=True))

    def sample_batches(
        self, indices: Iterable[int], sampling: Sampling, batch_size: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """The images `indices`, ascending, some at a time: (indices, uint8 (b, c, h, w) still on the device).

        The unit of work is the aligned batch {k·B … k·B+B-1}: computed whole, so that an image does not depend
        on which others were asked for. On a GPU a batch is given once the next has been sent there, to keep it busy.
        Raises FloatingPointError for NaN or infinity.
        """
        wanted = set(indices)
        batches = [
            range(k * batch_size, (k + 1) * batch_size) for k in sorted({i // batch_size for i in wanted})
        ]
        in_turn = prefetch if works_beside(self.device) else map
        noises = in_turn(
            lambda batch: pinned(initial_noise(sampling.seed, batch, self.image_shape), self.device), batches
        )
        sent: deque[tuple[list[int], Tensor, Callable[[], Tensor]]] = deque()
        for batch, x_T in zip(batches, noises, strict=True):
            x = last(self.denoise(x_T, batch, sampling)).x
            images, rows = self._bytes(x), [row for row, i in enumerate(batch) if i in wanted]
            if len(rows) < batch_size:
                images = images[rows]
            sent.append(([batch[row] for row in rows], images, to_host(x.isfinite().all())))
            if len(sent) > 1 or not works_beside(self.device):
                yield _arrived(*sent.popleft())
        for one in sent:
            yield _arrived(*one)

    def to_images(self, x: Tensor) -> Tensor:
        """The model's range (b, c, h, w) -> uint8 on the same device. Raises FloatingPointError for NaN or infinity."""
        _check_finite(x.isfinite().all())
        return self._bytes(x)

    def _bytes(self, x: Tensor) -> Tensor:
        return to_uint8(from_model_range(x, self.config.data))


def _check_finite(finite: Tensor) -> None:
    if not finite:
        raise FloatingPointError(
            "the network's output is not finite, so there is no image; are the weights sound?"
        )


def _arrived(indices: list[int], images: Tensor, finite: Callable[[], Tensor]) -> tuple[list[int], Tensor]:
    _check_finite(finite())
    return indices, images


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
