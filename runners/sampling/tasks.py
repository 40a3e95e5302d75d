"""What --sample makes: a declaration for each task. folder.py does the work of all.

A task fills a folder with pictures of chains. A chain starts at some x and is denoised to an image.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from configs.options import Options
from configs.refusal import Refusal
from datasets.pictures import exact_pictures
from functions.disk import files
from functions.disk.latents import read_latents, write_latents, write_npy
from functions.metrics.metrics import Number
from functions.noise import Stream, slerp, step_noise
from functions.restoration import DEGRADATIONS, travel_path
from functions.samplers import Step, last
from functions.schedules import alpha_bar
from runners.diffusion import Diffusion
from runners.sampling.given import Given, OnePicture, at_most, known_pixels

SHOWN = 16  # chains whose inputs are written too, for the sheet


class Task:
    """A way to fill a folder. Unless a task says otherwise, x_T is noise and a chain gives one picture."""

    makes = "images"  # what its files are
    keep_repeats = False  # of timesteps, where files are numbered by them
    from_noise = True  # whether the chains begin at x_T that is drawn, not at something like an image
    evaluations_first = 0  # that a folder costs before its chains begin, in a batch of one image
    one_batch = False  # whether all chains are one batch, whatever the batch size
    write: Callable[[Path, Tensor], None] | None = None  # of one file, where it is not a PNG

    def __init__(self, options: Options, diffusion: Diffusion):
        """Reads what the task is given. Raises Refusal where that is missing."""
        self.options, self.diffusion = options, diffusion
        self.sampling = diffusion.sampling(**options.sampling, keep_repeats=self.keep_repeats)
        self.steps_of_chain, self.evaluations_of_chain = (
            len(self.sampling.timesteps), self.sampling.evaluations
        )  # fmt: skip

    def chains(self) -> int:
        """How many chains there are."""
        return self.options.num_samples

    def files(self, chain: int) -> list[str]:
        """The names of a chain's pictures in the order of `pictures`, or its first ones."""
        return [f"{chain}.png"]

    def reads(self) -> dict[str, Any]:
        """What decides the pictures besides weights and sampler, as plain JSON: files by their hash."""
        return {}

    def start(self, chains: Sequence[int]) -> Tensor:
        """Where these chains begin: float32 (b, c, h, w) on the CPU. A last batch goes beyond `chains()`."""
        return self.diffusion.latents(chains, self.sampling.seed)

    def steps(self, x: Tensor, chains: Sequence[int]) -> Iterator[Step]:
        """Every step of a batch of chains."""
        return self.diffusion.denoise(x, self.sampling, chains)

    def pictures(self, steps: Iterator[Step], chains: Sequence[int]) -> Iterator[Tensor]:
        """What is shown of the steps of a batch of chains: (b, c, h, w) in the model's range, once a file."""
        yield last(steps).x

    def stored(self, x: Tensor) -> Tensor:
        """What `write` gets of a picture."""
        return self.diffusion.to_bytes(x)

    def sheet(self) -> list[list[str]]:
        """The rows of the contact sheet; none for no sheet."""
        shown = [f"{chain}.png" for chain in range(min(self.chains(), 64))]
        return [shown[i : i + 8] for i in range(0, len(shown), 8)]

    def finish(self, folder: Path) -> str:
        """What is made of a complete folder besides the sheet, in words."""
        return ""

    def numbers(self, folder: Path, cells: Mapping[Path, "Task"]) -> dict[str, Number]:
        """What is measured on a complete folder. cells: the tasks of a grid's folders, in their order."""
        return {}

    def note(self) -> str:
        """What these numbers are, for the table."""
        return ""


class Fid(Task):
    """{i}.png for every i below --num_samples."""


class Interpolation(Task):
    """{k}.png for 11 points on the arc between x_T of images 0 and 1 (arXiv 2010.02502, section 5.3).

    --between names other ends, pictures among them; four make a grid, row by row (appendix D.5).
    """

    def __init__(self, options: Options, diffusion: Diffusion):
        super().__init__(options, diffusion)
        self.side, self.is_grid = options.points, len(options.between) == 4
        self.one_batch = not self.is_grid
        self.images = {end: OnePicture(end, diffusion) for end in options.between if not end.isdecimal()}
        self.evaluations_first = len(self.images) * len(self.sampling.timesteps)

    def chains(self) -> int:
        return self.side**2 if self.is_grid else self.side

    def reads(self) -> dict[str, Any]:
        if self.options.between == ("0", "1") and self.side == 11:
            return {}
        ends = [self.images[end].hash if end in self.images else int(end) for end in self.options.between]
        of_images = {"inversion": self.options.inversion} if self.images else {}
        return {"between": ends, "points": self.side} | of_images

    @cached_property
    def ends(self) -> list[Tensor]:
        """x_T of each end, (c, h, w) on the CPU. Pictures are encoded, so the weights must be loaded."""
        found = {}
        for end, image in self.images.items():
            x = image.in_model_range([0])
            found[end] = last(self.diffusion.encode(x, self.sampling, self.options.inversion)).x.cpu()
        for end in set(self.options.between) - self.images.keys():
            found[end] = self.diffusion.latents([int(end)], self.sampling.seed)
        return [found[end][0] for end in self.options.between]

    def start(self, chains: Sequence[int]) -> Tensor:
        return torch.zeros(len(chains), *self.diffusion.image_shape)  # the ends may need the network

    def steps(self, x: Tensor, chains: Sequence[int]) -> Iterator[Step]:
        return super().steps(torch.stack([self.point(k % self.chains()) for k in chains]), chains)

    def point(self, k: int) -> Tensor:
        """x_T of picture k."""
        row, column = divmod(k, self.side)
        right, down = column / (self.side - 1), row / (self.side - 1)
        first = slerp(self.ends[0], self.ends[1], right)
        if not self.is_grid:
            return first
        return slerp(first, slerp(self.ends[2], self.ends[3], right), down)

    def sheet(self) -> list[list[str]]:
        rows = range(0, self.chains(), self.side)
        return [[f"{first + k}.png" for k in range(self.side)] for first in rows]


class PredictedX0(Task):
    """{j}_{i}.png, the x0 that chain j of 8 predicts at step i (arXiv 2010.02502, figure 4)."""

    keep_repeats = True  # upstream's file numbers count them
    one_batch = True

    def chains(self) -> int:
        return 8

    def files(self, chain: int) -> list[str]:
        return [f"{chain}_{i}.png" for i in range(self.steps_of_chain)]

    def pictures(self, steps: Iterator[Step], chains: Sequence[int]) -> Iterator[Tensor]:
        return (step.x0 for step in steps)

    def sheet(self) -> list[list[str]]:
        columns = (
            torch.linspace(0, self.steps_of_chain - 1, min(self.steps_of_chain, 10)).round().int().tolist()
        )
        return [[f"{chain}_{i}.png" for i in columns] for chain in range(self.chains())]


class OfImages(Task, ABC):
    """A task whose chain i is about picture i of those that are read."""

    makes = "files"
    from_noise = False

    def __init__(self, options: Options, diffusion: Diffusion):
        super().__init__(options, diffusion)
        self.given = Given(self.what(), options, diffusion)

    @abstractmethod
    def what(self) -> str:
        """train, test or a folder."""

    def chains(self) -> int:
        return len(self.given)

    def reads(self) -> dict[str, Any]:
        return {"images": self.given.hash}

    def start(self, chains: Sequence[int]) -> Tensor:
        return self.given.in_model_range(chains)


class Reconstruction(OfImages):
    """{i}.png, image i of a split from its x_T, with both beside the first (section 5.4, Table 2)."""

    def __init__(self, options: Options, diffusion: Diffusion):
        super().__init__(options, diffusion)
        self.steps_of_chain += len(self.sampling.timesteps)
        self.evaluations_of_chain += len(self.sampling.timesteps)

    def what(self) -> str:
        return self.options.reference

    def files(self, chain: int) -> list[str]:
        shown = [f"{chain}_latent.png", f"{chain}_original.png"] if chain < SHOWN else []
        return [f"{chain}.png", *shown]

    def reads(self) -> dict[str, Any]:
        return super().reads() | {"inversion": self.options.inversion}

    def steps(self, x: Tensor, chains: Sequence[int]) -> Iterator[Step]:
        for step in self.diffusion.encode(x, self.sampling, self.options.inversion):
            yield step
        yield from super().steps(step.x.clone(), chains)

    def pictures(self, steps: Iterator[Step], chains: Sequence[int]) -> Iterator[Tensor]:
        encoded = [next(steps) for _ in self.sampling.timesteps][-1].x.clone()
        yield from (last(steps).x, encoded, self.start(chains))

    def sheet(self) -> list[list[str]]:
        shown = range(min(self.chains(), SHOWN))
        return [[f"{i}{kind}.png" for i in shown] for kind in ("_original", "_latent", "")]

    def numbers(self, folder: Path, cells: Mapping[Path, Task]) -> dict[str, Number]:
        return {"mse": self.given.mean_squared_error(folder)}

    def note(self) -> str:
        name, by = self.given.name, self.options.inversion
        return f"mse: of the 8-bit images, by dimension on [0, 1]; {name}, encoded by --inversion {by}"


class Consistency(Task):
    """{i}.png, from the same x_T in every cell of a grid: what more steps change (section 5.2, figure 5)."""

    def numbers(self, folder: Path, cells: Mapping[Path, Task]) -> dict[str, Number]:
        ours = (self.options.seed, self.options.ckpts)
        same = [path for path, task in cells.items() if (task.options.seed, task.options.ckpts) == ours]
        finest = max(same, key=lambda path: cells[path].options.S)  # the first of these
        names, shape = [f"{i}.png" for i in range(self.chains())], self.diffusion.image_shape
        pairs = zip(exact_pictures(folder, names, shape), exact_pictures(finest, names, shape), strict=True)
        return {"distance": Number(mean((a.double() - b).square().mean().sqrt().item() for a, b in pairs))}

    def note(self) -> str:
        return "distance: RMS in grey levels of 255 to the first cell of the largest S, mean over the images"


class Encode(OfImages):
    """{i}.npy, x_T of image i, and all of them in one file beside the folder."""

    write = staticmethod(write_npy)

    def what(self) -> str:
        return self.options.encode

    def files(self, chain: int) -> list[str]:
        return [f"{chain}.npy"]

    def reads(self) -> dict[str, Any]:
        return super().reads() | {"inversion": self.options.inversion, "end": self.sampling.end}

    def steps(self, x: Tensor, chains: Sequence[int]) -> Iterator[Step]:
        return self.diffusion.encode(x, self.sampling, self.options.inversion)

    def stored(self, x: Tensor) -> Tensor:
        return x

    def sheet(self) -> list[list[str]]:
        return []

    def finish(self, folder: Path) -> str:
        path = folder.with_name(f"{folder.name}.npz")
        write_latents(path, [folder / f"{i}.npy" for i in range(self.chains())], folder / "manifest.json")
        return f"latents {path}"


class Decode(Task):
    """{i}.png, from the latents of a file."""

    from_noise = False

    def __init__(self, options: Options, diffusion: Diffusion):
        super().__init__(options, diffusion)
        path = Path(options.decode)
        self.latents = read_latents(path, diffusion.image_shape, self.sampling.timesteps[-1])
        self.hash = files.digest(path, "sha256")

    def chains(self) -> int:
        return at_most(self.options, len(self.latents), self.options.decode)

    def reads(self) -> dict[str, Any]:
        return {"latents": self.hash}

    def start(self, chains: Sequence[int]) -> Tensor:
        return self.latents[[i % len(self.latents) for i in chains]]


class Edit(OfImages):
    """{i}.png, image i noised to a level and denoised from there, with the input of the first (SDEdit)."""

    def __init__(self, options: Options, diffusion: Diffusion):
        super().__init__(options, diffusion)
        kept = tuple(t for t in self.sampling.timesteps if t <= options.strength * diffusion.T)
        if not kept:
            first = self.sampling.timesteps[0]
            raise Refusal(
                f"--strength {options.strength} is below the first timestep, {first:g} of {diffusion.T}"
            )
        self.sampling = replace(self.sampling, timesteps=kept)
        self.steps_of_chain, self.evaluations_of_chain = len(kept), self.sampling.evaluations

    def what(self) -> str:
        return self.options.input

    def files(self, chain: int) -> list[str]:
        return [f"{chain}.png", *[f"{chain}_input.png"] * (chain < SHOWN)]

    def start(self, chains: Sequence[int]) -> Tensor:
        a = alpha_bar(self.diffusion.alphas_cumprod, self.sampling.timesteps[-1])
        noise = self.diffusion.latents(chains, self.sampling.seed)
        return a.sqrt() * self.given.in_model_range(chains) + (1 - a).sqrt() * noise

    def pictures(self, steps: Iterator[Step], chains: Sequence[int]) -> Iterator[Tensor]:
        yield from (last(steps).x, self.given.in_model_range(chains))

    def sheet(self) -> list[list[str]]:
        shown = range(min(self.chains(), SHOWN))
        return [[f"{i}{kind}.png" for i in shown] for kind in ("_input", "")]


class Restoration(OfImages):
    """{i}.png, the whole of what is left of image i, with that and the truth beside the first (DDNM)."""

    from_noise = True

    def __init__(self, options: Options, diffusion: Diffusion):
        super().__init__(options, diffusion)
        data, how = diffusion.config.data, options.restoration
        channels, size, _ = data.shape
        if data.logit_transform:
            raise Refusal("--restoration works on pixels, and data.logit_transform is on")
        if how == "colorization" and channels == 1:
            raise Refusal(
                "--restoration colorization: these images have one channel, so there is no colour to find"
            )
        if how in ("sr2", "sr4") and size % int(how[2]):
            raise Refusal(
                f"--restoration {how}: data.image_size is {size}; it must be a multiple of {how[2]}"
            )
        self.known = known_pixels(options.mask, data.shape, all_known=how != "inpainting")
        self.degradation = DEGRADATIONS[how](self.known.float())
        self.sigma_y = options.sigma_y * (2 if data.rescaled else 1)
        moves = travel_path(len(self.sampling.timesteps), *options.travel)
        self.steps_of_chain = self.evaluations_of_chain = sum(to < k for k, to in moves)

    def what(self) -> str:
        return self.options.input

    def files(self, chain: int) -> list[str]:
        shown = [f"{chain}_input.png", f"{chain}_original.png"] if chain < SHOWN else []
        return [f"{chain}.png", *shown]

    def reads(self) -> dict[str, Any]:
        o = self.options
        mask = hashlib.sha256(self.known.numpy().tobytes()).hexdigest()
        how = {"restoration": o.restoration, "mask": mask, "sigma_y": o.sigma_y, "add_noise": o.add_noise}
        return super().reads() | how | {"travel": list(o.travel)}

    def start(self, chains: Sequence[int]) -> Tensor:
        return self.diffusion.latents(chains, self.sampling.seed)

    def measured(self, chains: Sequence[int]) -> Tensor:
        """y of these images, in the model's range."""
        y = self.degradation.apply(self.given.in_model_range(chains))
        if self.options.add_noise:
            _, c, h, w = y.shape
            noise = step_noise(self.sampling.seed, chains, (c, h, w), 1, torch.device("cpu"), Stream.MEASURED)
            y = y + self.sigma_y * noise(y)
        return y

    def steps(self, x: Tensor, chains: Sequence[int]) -> Iterator[Step]:
        how = (self.sigma_y, self.options.travel, chains)
        return self.diffusion.restore(x, self.sampling, self.degradation, self.measured(chains), *how)

    def pictures(self, steps: Iterator[Step], chains: Sequence[int]) -> Iterator[Tensor]:
        seen = self.degradation.pseudo_inverse(self.measured(chains))
        yield from (last(steps).x0, seen, self.given.in_model_range(chains))

    def sheet(self) -> list[list[str]]:
        shown = range(min(self.chains(), SHOWN))
        return [[f"{i}{kind}.png" for i in shown] for kind in ("_input", "", "_original")]

    def numbers(self, folder: Path, cells: Mapping[Path, Task]) -> dict[str, Number]:
        to_find = ~self.known
        return {"mse": self.given.mean_squared_error(folder, to_find if to_find.any() else None)}

    def note(self) -> str:
        where = "the pixels to find" if (~self.known).any() else "all pixels"
        return f"mse: of {where}, by dimension on [0, 1], against {self.given.name}"


# By the names in configs/choices.py.
TASKS: dict[str, type[Task]] = {
    "fid": Fid,
    "interpolation": Interpolation,
    "sequence": PredictedX0,
    "reconstruction": Reconstruction,
    "consistency": Consistency,
    "restoration": Restoration,
    "edit": Edit,
    "encode": Encode,
    "decode": Decode,
}
