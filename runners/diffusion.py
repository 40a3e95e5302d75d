"""`Diffusion`, the runner: it owns network, average, schedule and device, and has a verb for each command."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from configs import Config
from configs.choices import CLIPS, SAMPLERS, SPACINGS
from configs.options import Options
from configs.refusal import Refusal
from datasets.scaling import from_model_range, to_model_range
from functions import samplers, weights
from functions.disk.images import to_uint8
from functions.inversion import encode
from functions.noise import initial_noise, step_noise
from functions.objectives import eps_of, objective_of
from functions.restoration import Degradation, ddnm, travel_path
from functions.runtime.compilation import Network
from functions.runtime.device import choose_device
from functions.runtime.precision import memory_format
from functions.runtime.threads import copy_to_host, cores_are_idle, map_ahead, pinned
from functions.samplers import RandnLike, Step
from functions.schedules import alpha_bar, alphas_cumprod, betas, grid
from functions.weights import diffusers_config, pretrained
from functions.weights.checkpoint import Checkpoint
from models.ema import EMA
from models.fused import fuse, refresh
from models.unet import UNet

DEFAULT = Options()
NOT_FINITE = "the network's output is not finite, so there is no image; are the weights sound?"


@dataclass(frozen=True)
class Sampling:
    """The settings that, with the weights, decide the images."""

    timesteps: tuple[float, ...]  # τ, ascending; all are evaluated
    sample_type: str
    eta: float
    seed: int
    end: int = samplers.CLEAN  # the timestep that the last step goes to: a clean image, or 0
    clip_x0: str = "off"
    order: int = 0  # this and the next three: of samplers whose record lists orders
    method: str = ""
    solver_type: str = ""
    lower_order_final: bool = True

    @property
    def evaluations(self) -> int:
        """Network calls that an image costs (NFE)."""
        return SAMPLERS[self.sample_type].evaluations(len(self.timesteps))

    @property
    def decides(self) -> dict[str, Any]:
        """What decides the images beside timesteps, sampler, η and seed; not what upstream always does."""
        decides = {name: value for name, value in self.solver.items() if name != "clip_x0"}
        if self.end != samplers.CLEAN:
            decides["end"] = self.end
        if self.clip_x0 != SAMPLERS[self.sample_type].clip_x0:
            decides["clip_x0"] = self.clip_x0
        return decides

    @property
    def solver(self) -> dict[str, Any]:
        """What the sampler takes beside η, by name."""
        record = SAMPLERS[self.sample_type]
        taken: dict[str, Any] = {}
        if record.orders:
            taken |= {"order": self.order, "lower_order_final": self.lower_order_final}
        if record.methods:
            taken |= {"method": self.method, "solver_type": self.solver_type}
        if record.clip_x0 != "off":
            taken["clip_x0"] = self.clip_x0
        return taken


@dataclass(frozen=True)
class Batch:
    """Images that were made: the k-th picture of each chain in `chains`, (b, c, h, w) on the device.

    They are uint8, or float32 where x itself was asked for.
    """

    chains: list[int]
    k: int
    images: Tensor


class Diffusion:
    """A config's diffusion model. The network begins with random weights; `load` and `train` change them."""

    def __init__(self, config: Config, device: torch.device | str | None = None):
        """device: the best that this machine has where it is None."""
        self.config = config
        self.device = device if isinstance(device, torch.device) else choose_device(device)
        self.alphas_cumprod = alphas_cumprod(betas(config.diffusion))  # ᾱ_t is alphas_cumprod[t + 1]
        self.objective = objective_of(config)
        self.clip_x0: str | None = None  # where not given: the sampler's, or that of a diffusers scheduler

    @classmethod
    def from_pretrained(
        cls, ckpt: str, config: Config | None = None, *, device: str | None = None, which: str | None = None
    ) -> "Diffusion":
        """The network of anything that --ckpt takes: a path, a diffusers folder, hf://owner/name, a name.

        config: None for the one that comes with it. which: "ema" or "raw"; None for ema where there is one.
        Raises Refusal where it can't be had or does not fit.
        """
        path = pretrained.locate(ckpt)
        diffusion = cls(config or pretrained.own_config(ckpt), device)
        diffusion.load(weights.load_for(diffusion.config, path), which, str(path))
        if diffusers_config.is_folder(path):
            clip_x0, _ = diffusers_config.clipping(path)
            diffusion.clip_x0 = None if clip_x0 == "off" else clip_x0
        return diffusion

    # What it owns.

    @cached_property
    def model(self) -> UNet:
        """The U-Net, in evaluation mode."""
        return build_unet(self.config).eval().to(self.device).to(memory_format=memory_format(self.device))

    @cached_property
    def ema(self) -> EMA | None:
        """The average of the weights, which training keeps; None where the config says so."""
        model = self.config.model
        return EMA(self.model, model.ema_rate, model.ema_warmup) if model.ema else None

    @cached_property
    def network(self) -> Network | UNet:
        """What is evaluated: the model, or since `accelerate` a faster form of it."""
        return self.model

    @property
    def decides(self) -> dict[str, Any]:
        """What decides its images and numbers beside weights and data, as plain JSON values."""
        prediction = self.config.model.prediction
        of_network = {} if prediction == "eps" else {"prediction": prediction}
        return {"diffusion": asdict(self.config.diffusion), **of_network}

    @property
    def T(self) -> int:
        return len(self.alphas_cumprod) - 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.config.data.shape

    def load(self, checkpoint: Checkpoint, which: str | None, source: str) -> str:
        """Take a checkpoint's "ema" or "raw" weights (None: ema where it has them). Returns which, or "bare".

        Raises Refusal where they are missing or do not fit the config; `source` names the file in it.
        """
        chosen, kind = checkpoint.select(which, source)
        weights.load_into(self.model, chosen, source)
        if isinstance(self.network, Network) and self.network.model is not self.model:
            refresh(self.network.model, self.model)
        return kind

    def accelerate(self, precision: str) -> None:
        """From now on evaluate a faster form, in `precision`. `load` updates it, training does not."""
        self.network = Network(fuse(self.model, torch.bfloat16) if precision == "bf16" else self.model)

    # What a command does.

    def train(self, options: Options) -> None:
        """Train as the run `options.doc`, from the start or from its last checkpoint."""
        from runners.training.loop import train

        train(self, options)

    def test(self, options: Options) -> None:
        """Bits per dimension and the loss on real images."""
        from runners.evaluation.bound import test

        test(self, options)

    def measure(self, options: Options) -> None:
        """The metrics of a folder of images. The network plays no part."""
        from runners.evaluation.measure import measure

        measure(options, self.config, self.device)

    def write_samples(self, options: Options) -> None:
        """Fill a folder with images, or one for each cell of a grid, and measure them."""
        from runners.sampling.run import write_samples

        write_samples(self, options)

    def preview(self, options: Options) -> None:
        """A sheet of the first training images."""
        from runners.tools.preview import preview

        preview(self, options)

    def export(self, options: Options) -> None:
        """Write the weights for another program."""
        from runners.tools.export import export

        export(self, options)

    def plan(self, options: Options) -> None:
        """Print what the same command without --plan would do."""
        from runners.tools.plan import plan

        plan(self, options)

    # Sampling, step by step.

    @cached_property
    def _alphas_on_device(self) -> Tensor:
        return self.alphas_cumprod.to(self.device)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """ε of x (b, c, h, w) at t (b,), whatever the network predicts."""
        return eps_of(self.objective.prediction, self.network(x, t), x, t, self._alphas_on_device)

    def latents(self, indices: Iterable[int], seed: int = DEFAULT.seed) -> Tensor:
        """x_T of the images `indices`: float32 (b, c, h, w) on the CPU."""
        return initial_noise(seed, indices, self.image_shape)

    def sampling(
        self,
        timesteps: int = 50,
        eta: float = 0.0,
        seed: int = DEFAULT.seed,
        skip_type: str | None = None,
        sample_type: str = DEFAULT.sample_type,
        *,
        order: int | None = None,
        method: str | None = None,
        solver_type: str | None = None,
        lower_order_final: bool = True,
        denoise: bool = False,
        clip_x0: str | None = None,
        keep_repeats: bool = False,
    ) -> Sampling:
        """What `denoise` needs to know, from values as the flags take them. Raises Refusal as they do.

        None stands for the sampler's own, as in configs/choices.py. keep_repeats: of timesteps, for samplers
        without orders, to which a repeat changes nothing.
        """
        record = SAMPLERS.get(sample_type)
        if record is None:
            raise Refusal(f"sample_type is {sample_type!r}; it must be one of {', '.join(SAMPLERS)}")
        skip_type, clip_x0 = skip_type or record.spacing, clip_x0 or self.clip_x0 or record.clip_x0
        order, method = order or next(iter(record.orders), 0), method or next(iter(record.methods), "")
        solver_type = solver_type or next(iter(record.solver_types), "")
        known = skip_type in SPACINGS or Path(skip_type).is_file()
        for name, value, right, what in (
            ("timesteps", timesteps, 1 <= timesteps <= self.T, f"from 1 to {self.T}"),
            ("eta", eta, 0 <= eta <= 1, "from 0 to 1"),
            ("seed", seed, 0 <= seed < 2**32, f"from 0 to {2**32 - 1}"),
            ("skip_type", skip_type, known, f"one of {', '.join(SPACINGS)}, or a file of timesteps"),
            ("clip_x0", clip_x0, clip_x0 in CLIPS, f"one of {', '.join(CLIPS)}"),
            ("order", order, order in (record.orders or (0,)), f"one of {record.orders}"),
            ("method", method, method in (record.methods or ("",)), f"one of {record.methods}"),
            (
                "solver_type",
                solver_type,
                solver_type in (record.solver_types or ("",)),
                "dpmsolver or taylor",
            ),
        ):
            if not right:
                raise Refusal(f"{name} is {value!r}; it must be {what}")
        if clip_x0 != "off" and self.config.data.logit_transform:
            raise Refusal(
                f"clip_x0 is {clip_x0!r}, and data with logit_transform have no range; it must be 'off'"
            )
        chosen, end = self.timesteps(
            skip_type, timesteps, denoise=denoise, singlestep=order if method == "singlestep" else 0,
            keep_repeats=keep_repeats and not record.orders,
        )  # fmt: skip
        how = {
            "order": order,
            "method": method,
            "solver_type": solver_type,
            "lower_order_final": lower_order_final,
        }
        return Sampling(chosen, sample_type, eta, seed, end, clip_x0, **how)  # type: ignore[arg-type]

    def timesteps(
        self, skip_type: str, S: int, *, denoise: bool, singlestep: int, keep_repeats: bool = False
    ) -> tuple[tuple[float, ...], int]:
        """τ for S steps, without repeats unless `keep_repeats`, and where the last step ends.

        Raises Refusal if ᾱ = 0 at one of them, where x0 is infinite.
        """
        timesteps, end = grid(skip_type, S, self.alphas_cumprod, denoise=denoise, singlestep=singlestep)
        gone = [t for t in timesteps if not alpha_bar(self.alphas_cumprod, t) > 0]
        if gone:
            raise Refusal(
                f"--timesteps {S} with {skip_type} begins at t = {gone[0]}, where the schedule "
                f"{self.config.diffusion.beta_schedule} has ᾱ = 0 and x0 is infinite; take fewer timesteps"
            )
        return tuple(timesteps if keep_repeats else dict.fromkeys(timesteps)), end

    def denoise(self, x: Tensor, sampling: Sampling, indices: Sequence[int] | None = None) -> Iterator[Step]:
        """The steps from x_T, float32 (b, c, h, w) on any device.

        indices: the images whose step noise is drawn, 0 … b-1 where it is None.
        """
        record, sampler = SAMPLERS[sampling.sample_type], samplers.SAMPLERS[sampling.sample_type]
        randn_like: RandnLike = torch.randn_like  # is not called where the sampler draws no noise
        if record.draws_noise(sampling.eta):
            of = range(len(x)) if indices is None else indices
            randn_like = step_noise(sampling.seed, of, self.image_shape, len(sampling.timesteps), self.device)
        choice = {"eta": sampling.eta} if record.takes_eta else {}
        return sampler(
            self._eps(sampling), self.on_device(x), sampling.timesteps, self.alphas_cumprod, **choice,
            **sampling.solver, end=sampling.end, randn_like=randn_like,
        )  # fmt: skip

    def encode(
        self, x: Tensor, sampling: Sampling, inversion: Literal["to", "from"] = DEFAULT.inversion
    ) -> Iterator[Step]:
        """The steps from images in the model's range to x_T, by the timesteps of `sampling`. (b, c, h, w)

        The sampler, η and the seed of `sampling` play no part. inversion: as functions/inversion.py has it.
        """
        how: dict[str, Any] = {"end": sampling.end, "inversion": inversion}
        return encode(self.eps, self.on_device(x), sampling.timesteps, self.alphas_cumprod, **how)

    def restore(
        self,
        x: Tensor,
        sampling: Sampling,
        degradation: Degradation,
        y: Tensor,
        sigma_y: float = 0,
        travel: tuple[int, int] = (1, 1),
        indices: Sequence[int] | None = None,
    ) -> Iterator[Step]:
        """The steps from x_T to images of which y is left, as functions/restoration.py: ddnm has them.

        y: A of images in the model's range, with noise of standard deviation sigma_y on that scale.
        """
        of = range(len(x)) if indices is None else indices
        moves = len(travel_path(len(sampling.timesteps), *travel))
        how: dict[str, Any] = {"eta": sampling.eta, "end": sampling.end, "travel": travel}
        return ddnm(
            self._eps(sampling), self.on_device(x), sampling.timesteps, self.alphas_cumprod, **how,
            randn_like=step_noise(sampling.seed, of, self.image_shape, moves, self.device),
            degradation=degradation, y=self.on_device(y), sigma_y=sigma_y,
        )  # fmt: skip

    def on_device(self, x: Tensor) -> Tensor:
        """x (b, c, h, w) where the network is, in its memory format."""
        return x.to(
            self.device, memory_format=memory_format(self.device), non_blocking=self.device.type == "cuda"
        )

    def _eps(self, sampling: Sampling) -> samplers.Model:
        """ε of x at t, of the x0 that --clip_x0 asks for."""
        model: samplers.Model = self.eps
        if sampling.clip_x0 != SAMPLERS[sampling.sample_type].clip_x0:
            low = -1 if self.config.data.rescaled else 0
            table = self.alphas_cumprod.to(self.device)
            model = samplers.clipped(model, table, sampling.clip_x0, low)
        return model

    def sample(
        self, n: int | Iterable[int], *, batch_size: int | None = None, **how: int | float | str | bool
    ) -> Iterator[tuple[int, Tensor]]:
        """n images, or those of the given indices: (index, uint8 (c, h, w)), as --sample --fid writes them.

        how: what `sampling` takes.
        """
        indices = list(range(n) if isinstance(n, int) else n)
        batch_size = batch_size or min(self.config.sampling.batch_size, max(indices, default=0) + 1)
        batches = self.sample_batches(indices, self.sampling(**how), batch_size)  # type: ignore[arg-type]
        return (pair for batch in batches for pair in zip(batch.chains, batch.images.cpu(), strict=True))

    def sample_batches(
        self,
        chains: Iterable[int],
        sampling: Sampling,
        batch_size: int,
        start: Callable[[Sequence[int]], Tensor] | None = None,
        pictures: Callable[[Tensor, Sequence[int]], Iterator[Tensor]] | None = None,
        stored: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[Batch]:
        """The images of the given chains: by default chain i gives image i.

        start(chains): where they begin, float32 (b, c, h, w) on the CPU; None for x_T of these images.
        pictures(x, chains): what is shown of chains from x on, in the model's range; None for their end.
        stored(x): what is made of that; None for uint8.
        Whole batches {k·B … k·B+B-1} are computed, even where a part is wanted: an image does not depend
        on what else is asked for. On a GPU a batch is given when the next has been sent, to keep it busy.
        Raises FloatingPointError for NaN or infinity.
        """
        wanted = set(chains)
        batches = [
            range(k * batch_size, (k + 1) * batch_size) for k in sorted({i // batch_size for i in wanted})
        ]

        def end(x_T: Tensor, batch: Sequence[int]) -> Iterator[Tensor]:
            yield samplers.last(self.denoise(x_T, sampling, batch)).x

        shown = pictures or end

        def latents(batch: range) -> Tensor:
            return pinned(start(batch) if start else self.latents(batch, sampling.seed), self.device)

        sent: deque[tuple[Batch, Callable[[], Tensor]]] = deque()
        for batch, x_T in zip(batches, map_ahead(latents, batches, self.device), strict=True):
            rows = [row for row, i in enumerate(batch) if i in wanted]
            for k, x in enumerate(shown(x_T, batch)):
                images = (stored or self.to_bytes)(x)
                if len(rows) < batch_size:
                    images = images[rows]
                sent.append(
                    (Batch([batch[row] for row in rows], k, images), copy_to_host(x.isfinite().all()))
                )
                if len(sent) > 1 or not cores_are_idle(self.device):
                    yield _checked(*sent.popleft())
        yield from (_checked(*made) for made in sent)

    def from_images(self, images: Tensor) -> Tensor:
        """From uint8 (b, c, h, w) to the model's range, without dequantization. `to_images` undoes it."""
        return to_model_range(images, self.config.data)

    def to_bytes(self, x: Tensor) -> Tensor:
        """From the model's range to uint8 (b, c, h, w), without a look at what is in it."""
        return to_uint8(from_model_range(x, self.config.data))

    def to_images(self, x: Tensor) -> Tensor:
        """From the model's range to uint8 (b, c, h, w). Raises FloatingPointError for NaN or infinity."""
        if not x.isfinite().all():
            raise FloatingPointError(NOT_FINITE)
        return self.to_bytes(x)

    def evaluate(self, batch_size: int) -> Tensor:
        """One evaluation of noise, to measure its time and its memory: float32 (b, c, h, w)."""
        x = torch.randn(batch_size, *self.image_shape, device=self.device)
        with torch.no_grad():
            return self.network(x, torch.zeros(batch_size, dtype=torch.long, device=self.device))


def _checked(batch: Batch, finite: Callable[[], Tensor]) -> Batch:
    if not finite():
        raise FloatingPointError(NOT_FINITE)
    return batch


def build_unet(config: Config) -> UNet:
    """The network that a config describes, with random weights."""
    model = config.model
    unet = UNet(
        image_size=config.data.image_size, in_channels=model.in_channels, out_ch=model.out_ch, ch=model.ch,
        ch_mult=model.ch_mult, num_res_blocks=model.num_res_blocks, attn_resolutions=model.attn_resolutions,
        dropout=model.dropout, resamp_with_conv=model.resamp_with_conv,
        logvar_timesteps=config.diffusion.num_diffusion_timesteps if model.type == "bayesian" else 0,
    )  # fmt: skip
    if model.zero_init:
        unet.initialize_as_ddpm()
    return unet
