"""The order of the images, which follows from (seed, epoch) alone, and the loader that keeps to it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import tee
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from configs.machine import cores
from configs.refusal import Refusal
from datasets import Images


class Batch(NamedTuple):
    """One global batch: the images `indices` of an epoch. With it, `images_seen` of the epoch are used."""

    epoch: int
    images_seen: int
    indices: np.ndarray

    @property
    def size(self) -> int:
        return len(self.indices)


def training_order(
    length: int, batch_size: int, seed: int, epoch: int, images_seen: int, n_epochs: int
) -> Iterator[Batch]:
    """The batches from a position to the end of the last epoch. An epoch's last batch may be smaller."""
    for e in range(epoch, n_epochs):
        order = np.random.default_rng([seed, e, 2]).permutation(length)  # 2: the stream of orders
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
    """Each batch with its rows `rows_of(size)` of images, uint8 (rows, c, h, w); a Tensor's, on its device.

    Workers start once and read ahead through all epochs. Raises Refusal for an image that cannot be read.
    """
    batches, ahead = tee(batches)
    rows = (batch.indices[rows_of(batch.size)] for batch in ahead)
    if not isinstance(dataset, Tensor):
        arrays = read_ahead(dataset.__getitem__, rows, num_workers, _stacked)
        images = (_for_device(array) for array in arrays)
    else:
        images = (dataset[torch.from_numpy(row).to(dataset.device, non_blocking=True)] for row in rows)
    return zip(batches, images, strict=True)


def read_ahead(read: Callable, lists: Iterable, num_workers: int, join: Callable) -> Iterator[Any]:
    """`join([read(i), …])` of each list, by workers two lists ahead. Raises a Refusal of `read` as it is.

    join: gives no tensors, which would pass through /dev/shm; a container's may be too small for them.
    Raises OSError where a worker dies.
    """
    how: dict[str, Any] = {"num_workers": cores(num_workers), "worker_init_fn": _end_with_parent}
    how["collate_fn"] = _as_they_are
    results = iter(DataLoader(_Reader(read, join), batch_size=None, sampler=lists, **how))
    if how["num_workers"]:  # torch would raise wherever the program is, in the middle of a step too
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            why = "killed for memory, or by damage in the data; data.num_workers 0 shows which image it was"
            raise OSError(f"a process that reads the images has died ({why})") from None
        if isinstance(result, Refusal | OSError):
            raise result
        yield result


def _as_they_are(results: Any) -> Any:
    """In place of torch's own, which would make tensors of arrays."""
    return results


def _stacked(images: list[Tensor]) -> np.ndarray:
    return torch.stack(images).numpy()


def _for_device(array: np.ndarray) -> Tensor:
    """As a tensor; for a GPU in pinned memory, so that copies to it wait for nothing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_initialized() else tensor


class _Reader(Dataset):
    """It returns a Refusal or OSError: one that is raised would come with the worker's traceback."""

    def __init__(self, read: Callable, join: Callable):
        self.read, self.join = read, join

    def __getitem__(self, indices: Iterable[int]) -> Any:
        try:
            return self.join([self.read(i) for i in indices])
        except (Refusal, OSError) as error:
            return error


def _end_with_parent(worker: int) -> None:
    """End a worker whose parent was killed: it would wait for ever for someone to take its images."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
