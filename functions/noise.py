"""Noise by (seed, image, stream): an image's noise is its own, whatever the batch, the rank or the device."""

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from functions.losses import antithetic_timesteps


class Stream(IntEnum):
    """What a draw is for, so that no two share a stream of one seed. 1 is fixed by what images mean; 2 is the data's order."""

    STEP = 1
    INIT = 3
    VALIDATION = 4
    TRAIN = 5
    DROPOUT = 6
    LIKELIHOOD = 7
    CHOICE = 8


def initial_noise(seed: int, indices: Iterable[int], shape: tuple[int, int, int]) -> Tensor:
    """x_T of the images `indices`: float32 (b, *shape) on the CPU."""
    return torch.from_numpy(np.stack([_normal(np.random.default_rng([seed, i]), shape) for i in indices]))


def step_noise(seed: int, indices: Sequence[int], stream: Stream = Stream.STEP) -> Callable[[Tensor], Tensor]:
    """`randn_like` for a batch holding the images `indices`: call k gives each image the k-th array of its stream."""
    generators = [np.random.default_rng([seed, i, stream]) for i in indices]

    def randn_like(x: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([_normal(g, x.shape[1:]) for g in generators])).to(x)

    return randn_like


def step_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose stream depends on all of `key` (the seed, a stream, a step …) and nothing else."""
    return torch.Generator(device).manual_seed(derived_seed(*key))


class BatchDraws:
    """Random numbers for a global batch of n images: drawn for all n, of which this process gets its `rows`."""

    def __init__(self, generator: torch.Generator, n: int, rows: slice):
        self.generator, self.n, self.rows = generator, n, rows

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1): (rows, *shape)."""
        return torch.rand((self.n, *shape), generator=self.generator, device=self.generator.device)[self.rows]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal: (rows, *shape)."""
        return torch.randn((self.n, *shape), generator=self.generator, device=self.generator.device)[self.rows]

    def timesteps(self, T: int) -> Tensor:
        """Antithetic timesteps in [0, T): int64 (rows,)."""
        return antithetic_timesteps(self.n, T, self.generator)[self.rows]


def derived_seed(*key: int) -> int:
    """A well-mixed 63-bit seed for the tuple `key`."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def slerp(z1: Tensor, z2: Tensor, alpha: float) -> Tensor:
    """Spherical interpolation, z1 at alpha 0 and z2 at 1 (arXiv 2010.02502, appendix D.5)."""
    theta = torch.acos((z1 * z2).sum() / (z1.norm() * z2.norm()))
    return torch.sin((1 - alpha) * theta) / torch.sin(theta) * z1 + torch.sin(alpha * theta) / torch.sin(theta) * z2


def _normal(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return generator.standard_normal(tuple(shape), dtype=np.float32)
