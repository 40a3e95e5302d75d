"""The order of the data, from (seed, epoch) alone, and the loader that keeps to it."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from configs.refusal import Refusal
from datasets import Images

ORDER_STREAM = 2


@dataclass(frozen=True)
class Batch:
    """One global batch: the images `indices` of epoch `epoch`, after which `images_seen` of it have been used."""

    epoch: int
    images_seen: int
    indices: np.ndarray

    @property
    def size(self) -> int:
        return len(self.indices)


def training_order(
    length: int, batch_size: int, seed: int, epoch: int, images_seen: int, n_epochs: int
) -> Iterator[Batch]:
    """The batches from a position on, to the end of the last epoch; an epoch's last batch may be smaller."""
    for e in range(epoch, n_epochs):
        order = np.random.default_rng([seed, e, ORDER_STREAM]).permutation(length)
        for start in range(images_seen, length, batch_size):
            stop = min(start + batch_size, length)
            yield Batch(e, stop, order[start:stop])
        images_seen = 0


def plain_order(length: int, batch_size: int) -> Iterator[Batch]:
    """Every image once, in the data set's order."""
    for start in range(0, length, batch_size):
        stop = min(start + batch_size, length)
        yield Batch(0, stop, np.arange(start, stop))


def load(
    dataset: Images, batches: Iterable[Batch], rows_of: Callable[[int], slice], num_workers: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with the images of its rows `rows_of(size)`, uint8 (rows, c, h, w); a Tensor's on its own device.

    Workers read ahead through all epochs, so they start once; none are used for data that lie in memory.
    Raises Refusal for an image that can't be read.
    """
    batches, ahead = tee(batches)
    index_lists = (batch.indices[rows_of(batch.size)] for batch in ahead)
    if isinstance(dataset, Tensor):
        yield from zip(
            batches,
            (
                dataset[torch.from_numpy(indices).to(dataset.device, non_blocking=True)]
                for indices in index_lists
            ),
            strict=True,
        )
    else:
        yield from zip(batches, _read_ahead(dataset, index_lists, num_workers), strict=True)


def worker_count(asked: int) -> int:
    """At most this process's part of the cores it may run on: torchrun's processes on one machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _read_ahead(dataset: Images, index_lists: Iterable[np.ndarray], num_workers: int) -> Iterator[Tensor]:
    loader: DataLoader = DataLoader(
        ErrorsAsValues(dataset.__getitem__),
        batch_sampler=(indices.tolist() for indices in index_lists),
        num_workers=worker_count(num_workers),  # each reads two batches ahead
        collate_fn=_stack,
        pin_memory=torch.cuda.is_initialized(),  # where the network is on a GPU: copies to it then wait for nothing
    )
    for images in loader:
        if isinstance(images, Refusal):
            raise images
        yield images


class ErrorsAsValues(Dataset):
    """A worker's exception would reach the user wrapped in the worker's traceback; a value comes as it is."""

    def __init__(self, item: Callable[[int], Any]):
        self.item = item

    def __getitem__(self, i: int) -> Any:
        try:
            return self.item(i)
        except Refusal as error:
            return error


def _stack(items: list[Tensor | Refusal]) -> Tensor | ValueError:
    images = [item for item in items if isinstance(item, Tensor)]
    return (
        torch.stack(images) if len(images) == len(items) else next(e for e in items if isinstance(e, Refusal))
    )
