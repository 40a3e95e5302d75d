"""The order of the images, which follows from (seed, epoch) alone, and the loader that keeps to it."""

import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import tee
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from configs.machine import cores
from configs.refusal import Refusal
from datasets import Images
from datasets.pictures import Pictures

FAULTS = 100  # images one after another that cannot be read: then it is not single images


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
    dataset: Images,
    batches: Iterable[Batch],
    rows_of: Callable[[int], slice],
    num_workers: int,
    on_error: str = "stop",
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with its rows `rows_of(size)` of images, uint8 (rows, c, h, w); a Tensor's, on its device.

    Workers start once and read ahead through all epochs. Raises Refusal for an image that cannot be read.
    With on_error "skip" the next in the data set stands for it, whatever the batch: resuming stays exact.
    """
    batches, ahead = tee(batches)
    rows = (batch.indices[rows_of(batch.size)] for batch in ahead)
    if not isinstance(dataset, Tensor):
        read = partial(_or_next, dataset, FAULTS if on_error == "skip" else 1)
        name = dataset.describe if isinstance(dataset, Pictures) else str
        arrays = _told(read_ahead(read, rows, num_workers, _stacked, name))
        images = (_for_device(array) for array in arrays)
    else:
        images = (dataset[torch.from_numpy(row).to(dataset.device, non_blocking=True)] for row in rows)
    return zip(batches, images, strict=True)


def read_ahead(
    read: Callable, lists: Iterable, num_workers: int, join: Callable, name: Callable[[int], str]
) -> Iterator[Any]:
    """`join([read(i), …])` of each list, by workers two lists ahead. Raises a Refusal of `read` as it is.

    join: gives no tensors, which would pass through /dev/shm; a container's may be too small for them.
    name: of image i, for the OSError that is raised where a worker dies at it.
    """
    how: dict[str, Any] = {"num_workers": cores(num_workers), "worker_init_fn": _end_with_parent}
    how["collate_fn"] = _as_they_are
    reader = _Reader(read, join, how["num_workers"])
    results = iter(DataLoader(reader, batch_size=None, sampler=lists, **how))
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
            at = [name(i) for pid, i in reader.places() if str(pid) in re.findall(r"\d+", str(error))]
            where = f", at {', '.join(at)}" if at else ""
            why = "killed for memory, or by damage in the data"
            raise OSError(f"a process that reads the images has died{where} ({why})") from None
        if isinstance(result, Refusal | OSError):
            raise result
        yield result


def _as_they_are(results: Any) -> Any:
    """In place of torch's own, which would make tensors of arrays."""
    return results


def _or_next(dataset: Images, most: int, i: int) -> tuple[Tensor, list[str]]:
    """Image i or the next that can be read, and what was wrong with those before. Of `most` it raises."""
    faults: list[str] = []
    while True:
        try:
            return dataset[(i + len(faults)) % len(dataset)], faults
        except Refusal as refusal:
            faults.append(str(refusal))
            if len(faults) == most:
                raise


def _stacked(images: list[tuple[Tensor, list[str]]]) -> tuple[np.ndarray, list[str]]:
    tensors, faults = zip(*images, strict=True)
    return torch.stack(tensors).numpy(), [fault for some in faults for fault in some]


def _told(batches: Iterable[tuple[np.ndarray, list[str]]]) -> Iterator[np.ndarray]:
    """The arrays; each fault is said once, with how many there are."""
    told: set[str] = set()
    for array, faults in batches:
        for fault in faults:
            if fault not in told:
                told.add(fault)
                logging.warning(f"{fault}; the next image stands for it (images skipped: {len(told)})")
        yield array


def _for_device(array: np.ndarray) -> Tensor:
    """As a tensor; for a GPU in pinned memory, so that copies to it wait for nothing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_initialized() else tensor


class _Reader(Dataset):
    """It returns a Refusal or OSError: one that is raised would come with the worker's traceback."""

    def __init__(self, read: Callable, join: Callable, num_workers: int):
        self.read, self.join = read, join
        self.at = multiprocessing.RawArray("q", 2 * num_workers)  # of each worker: its pid, its image + 1

    def __getitem__(self, indices: Iterable[int]) -> Any:
        try:
            return self.join([self._read(i) for i in indices])
        except (Refusal, OSError) as error:
            return error

    def _read(self, i: int) -> Any:
        if worker := get_worker_info():
            self.at[2 * worker.id : 2 * worker.id + 2] = [os.getpid(), int(i) + 1]
        result = self.read(i)
        if worker:
            self.at[2 * worker.id + 1] = 0
        return result

    def places(self) -> list[tuple[int, int]]:
        """The pid of each worker that is at an image, and the image."""
        return [(pid, i - 1) for pid, i in zip(self.at[::2], self.at[1::2], strict=True) if i]


def _end_with_parent(worker: int) -> None:
    """End a worker whose parent was killed: it would wait for ever for someone to take its images."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
