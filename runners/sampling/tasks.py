"""What --sample makes: a declaration for each task. folder.py does the work of all.

A task fills a folder with pictures of chains. A chain starts at some x_T and is denoised to an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from configs.options import Options
from functions.noise import initial_noise, slerp
from functions.samplers import Step
from runners.diffusion import final

Shape = tuple[int, int, int]


class Task(ABC):
    """A way to fill a folder. Unless a task says otherwise, x_T is noise and a chain gives one picture."""

    keep_repeats = False  # of timesteps, where files are numbered by them
    one_batch = True  # whether all chains are one batch, whatever the batch size

    @abstractmethod
    def chains(self, options: Options) -> int:
        """How many chains there are."""

    def files(self, chain: int, steps: int) -> list[str]:
        """The names of a chain's pictures, in the order in which `pictures` gives them."""
        return [f"{chain}.png"]

    def start(self, seed: int, chains: Sequence[int], shape: Shape) -> Tensor:
        """x_T of these chains: float32 (b, c, h, w) on the CPU."""
        return initial_noise(seed, chains, shape)

    def pictures(self, steps: Iterator[Step]) -> Iterator[Tensor]:
        """What is shown of the steps of a batch of chains: (b, c, h, w) in the model's range, once a file."""
        return final(steps)

    def sheet(self, chains: int, steps: int) -> list[list[str]]:
        """The rows of the contact sheet."""
        return [[f"{chain}.png" for chain in range(chains)]]


class Fid(Task):
    """{i}.png for every i below --num_samples."""

    one_batch = False

    def chains(self, options: Options) -> int:
        return options.num_samples

    def sheet(self, chains: int, steps: int) -> list[list[str]]:
        shown = [f"{chain}.png" for chain in range(min(chains, 64))]
        return [shown[i : i + 8] for i in range(0, len(shown), 8)]


class Interpolation(Task):
    """{k}.png for 11 points on the arc between x_T of images 0 and 1 (arXiv 2010.02502, section 5.3)."""

    def chains(self, options: Options) -> int:
        return 11

    def start(self, seed: int, chains: Sequence[int], shape: Shape) -> Tensor:
        z1, z2 = initial_noise(seed, (0, 1), shape)
        return torch.stack([slerp(z1, z2, k / 10) for k in chains])


class PredictedX0(Task):
    """{j}_{i}.png, the x0 that chain j of 8 predicts at step i (arXiv 2010.02502, figure 4)."""

    keep_repeats = True  # upstream's file numbers count them

    def chains(self, options: Options) -> int:
        return 8

    def files(self, chain: int, steps: int) -> list[str]:
        return [f"{chain}_{i}.png" for i in range(steps)]

    def pictures(self, steps: Iterator[Step]) -> Iterator[Tensor]:
        return (step.x0 for step in steps)

    def sheet(self, chains: int, steps: int) -> list[list[str]]:
        columns = torch.linspace(0, steps - 1, min(steps, 10)).round().int().tolist()
        return [[f"{chain}_{i}.png" for i in columns] for chain in range(chains)]


# By the names in configs/choices.py.
TASKS: dict[str, Task] = {"fid": Fid(), "interpolation": Interpolation(), "sequence": PredictedX0()}
