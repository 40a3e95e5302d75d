"""Noise by (seed, image, stream): an image's noise is its own, whatever the batch, the rank or the device."""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from itertools import chain, cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from functions.objectives import antithetic_timesteps, independent_timesteps
from functions.runtime.threads import cores_are_idle, map_ahead, worker_threads
from functions.samplers import RandnLike

Shape = tuple[int, int, int]

STEPS_AHEAD, MOST_AHEAD = 8, 2**26  # of a block of noise: steps, and numbers (256 MB)


class Stream(IntEnum):
    """What a draw is for, beside the seed and an index, so that no two draws share their numbers.

    x_T has no stream. STEP must stay 1, as docs/upstream.md promises; datasets/batches.py uses 2.
    """

    STEP, WEIGHTS, VALIDATION, TRAIN, DROPOUT, LIKELIHOOD, CHOICE, MEASURED = 1, 3, 4, 5, 6, 7, 8, 9


def initial_noise(seed: int, indices: Iterable[int], shape: Shape) -> Tensor:
    """x_T of the images `indices`: float32 (b, *shape) on the CPU."""
    draws = [np.random.default_rng([seed, i]).standard_normal(shape, dtype=np.float32) for i in indices]
    return torch.from_numpy(np.stack(draws))


def step_noise(
    seed: int, indices: Sequence[int], shape: Shape, S: int, device: torch.device, stream: int = Stream.STEP
) -> RandnLike:
    """`randn_like` for the images `indices`: call k < S gives each image the k-th array of its stream.

    A few steps are drawn at once. With a GPU, threads draw the next steps while it computes.
    """
    generators = [np.random.default_rng([seed, i, stream]) for i in indices]
    arrays = chain.from_iterable(_blocks(generators, shape, S, device))
    return lambda x: next(arrays).to(x.dtype)


def _blocks(
    generators: list[np.random.Generator], shape: Shape, steps: int, device: torch.device
) -> Iterator[Iterable[Tensor]]:
    """The noise of a few steps at a time, on the device: (b, *shape) each. Memory does not grow with S."""
    n, dim, on_gpu = len(generators), math.prod(shape), device.type == "cuda"
    ahead = max(1, min(STEPS_AHEAD, steps, MOST_AHEAD // (n * dim)))

    # Three buffers in rotation. One is filled again only after the GPU has copied it.
    events = [torch.cuda.Event(blocking=True) if on_gpu else None for _ in range(3)]
    buffers = cycle([(torch.empty(n * ahead * dim, pin_memory=on_gpu), event) for event in events])
    with ThreadPoolExecutor(worker_threads()) as pool:
        each_image = pool.map if cores_are_idle(device) else map

        def draw(first: int) -> tuple[Tensor, torch.cuda.Event | None]:
            buffer, fetched = next(buffers)
            if fetched:
                fetched.synchronize()
            count = min(ahead, steps - first)
            block = buffer[: n * count * dim].view(n, count, *shape)
            draws = zip(generators, block.numpy(), strict=True)
            list(each_image(lambda draw: draw[0].standard_normal(dtype=np.float32, out=draw[1]), draws))
            return block, fetched

        for block, fetched in map_ahead(draw, range(0, steps, ahead), device):
            on_device = block.to(device, non_blocking=on_gpu)
            if fetched:
                fetched.record(torch.cuda.current_stream(device))
            yield on_device.unbind(1)


def derived_seed(*key: int) -> int:
    """A well-mixed 63-bit seed for the tuple `key`."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def step_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose numbers follow from `key` alone: the seed, a stream, a step …"""
    return torch.Generator(device).manual_seed(derived_seed(*key))


class BatchDraws:
    """Random numbers for a global batch of n images: drawn for all n, this process gets its `rows`."""

    def __init__(self, generator: torch.Generator, n: int, rows: slice):
        self.generator, self.n, self.rows = generator, n, rows
        self.how: dict[str, Any] = {"generator": generator, "device": generator.device}

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1): (rows, *shape)."""
        return torch.rand((self.n, *shape), **self.how)[self.rows]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal: (rows, *shape)."""
        return torch.randn((self.n, *shape), **self.how)[self.rows]

    def t(self, T: int, antithetic: bool = True) -> Tensor:
        """t in [0, T), in antithetic pairs or independent: int64 (rows,)."""
        draw = antithetic_timesteps if antithetic else independent_timesteps
        return draw(self.n, T, self.generator)[self.rows]


def slerp(z1: Tensor, z2: Tensor, alpha: float) -> Tensor:
    """Spherical interpolation, z1 at alpha 0 and z2 at 1 (arXiv 2010.02502, appendix D.5)."""
    theta = torch.acos((z1 * z2).sum() / (z1.norm() * z2.norm()))
    weights = torch.sin((1 - alpha) * theta) / torch.sin(theta), torch.sin(alpha * theta) / torch.sin(theta)
    return weights[0] * z1 + weights[1] * z2
