"""Noise by (seed, image, stream): an image's noise is its own, whatever the batch, the rank or the device."""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from itertools import chain, cycle

import numpy as np
import torch
from torch import Tensor

from functions.objectives import antithetic_timesteps
from functions.runtime.threads import prefetch, thread_count, works_beside
from functions.samplers import RandnLike

STEPS_AHEAD, MOST_AHEAD = 8, 2**26  # at most so many steps at once, and so many numbers: 256 MB


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


def step_noise(
    seed: int,
    indices: Sequence[int],
    shape: tuple[int, int, int],
    steps: int,
    device: torch.device,
    stream: Stream = Stream.STEP,
) -> RandnLike:
    """`randn_like` for a batch holding the images `indices`: call k < steps gives each image the k-th array of its stream.

    A few steps ahead are drawn at once, each image's by one call; beside a GPU in threads, while it works on the steps before.
    """
    generators = [np.random.default_rng([seed, i, stream]) for i in indices]
    arrays = chain.from_iterable(_blocks(generators, shape, steps, device))
    return lambda x: next(arrays).to(x.dtype)


def _blocks(
    generators: list[np.random.Generator], shape: tuple[int, int, int], steps: int, device: torch.device
) -> Iterator[Iterable[Tensor]]:
    """Noise of some steps at a time, on the device: (b, *shape) each. Memory does not grow with the number of steps."""
    n, dim, on_gpu = len(generators), math.prod(shape), device.type == "cuda"
    ahead = max(1, min(STEPS_AHEAD, steps, MOST_AHEAD // (n * dim)))
    # Three buffers serve in turn: one in use, one ready, one being drawn. Before it serves again a GPU must have fetched it.
    fetched = [torch.cuda.Event(blocking=True) if on_gpu else None for _ in range(3)]
    buffers = cycle(
        zip([torch.empty(n * ahead * dim, pin_memory=on_gpu) for _ in range(3)], fetched, strict=True)
    )
    with ThreadPoolExecutor(thread_count()) as pool:

        def draw(first: int) -> tuple[Tensor, torch.cuda.Event | None]:
            buffer, free = next(buffers)
            if free:
                free.synchronize()
            count = min(ahead, steps - first)
            block = buffer[: n * count * dim].view(n, count, *shape)
            draws = zip(generators, block.numpy(), strict=True)
            list(spread(lambda draw: draw[0].standard_normal(dtype=np.float32, out=draw[1]), draws))
            return block, free

        spread, in_turn = (pool.map, prefetch) if works_beside(device) else (map, map)
        for block, free in in_turn(draw, range(0, steps, ahead)):
            there = block.to(device, non_blocking=on_gpu)
            if free:
                free.record(torch.cuda.current_stream(device))
            yield there.unbind(1)


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
        return torch.randn((self.n, *shape), generator=self.generator, device=self.generator.device)[
            self.rows
        ]

    def timesteps(self, T: int) -> Tensor:
        """Antithetic timesteps in [0, T): int64 (rows,)."""
        return antithetic_timesteps(self.n, T, self.generator)[self.rows]


def derived_seed(*key: int) -> int:
    """A well-mixed 63-bit seed for the tuple `key`."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def slerp(z1: Tensor, z2: Tensor, alpha: float) -> Tensor:
    """Spherical interpolation, z1 at alpha 0 and z2 at 1 (arXiv 2010.02502, appendix D.5)."""
    theta = torch.acos((z1 * z2).sum() / (z1.norm() * z2.norm()))
    return (
        torch.sin((1 - alpha) * theta) / torch.sin(theta) * z1
        + torch.sin(alpha * theta) / torch.sin(theta) * z2
    )


def _normal(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return generator.standard_normal(tuple(shape), dtype=np.float32)
