"""FFHQ's layout, an LMDB of square images by resolution: keys `{resolution}-{index:05d}`, and `length`, their count."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import lmdb
import numpy as np

from configs import DataConfig
from configs.refusal import Refusal
from datasets.lmdb_files import damage_told, environment
from datasets.pictures import Pictures, sound
from datasets.sources import LmdbValues

LENGTH = b"length"
CHECKED_AT_START = 2


class ResolutionKeys(Sequence[bytes]):
    """The keys of the images `indices` at one resolution."""

    def __init__(self, size: int, indices: np.ndarray):
        self.size, self.indices = size, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, i: int) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[bytes]: ...
    def __getitem__(self, i: int | slice) -> bytes | Sequence[bytes]:
        return (
            ResolutionKeys(self.size, self.indices[i])
            if isinstance(i, slice)
            else key(self.size, self.indices[i])
        )


def key(size: int, i: int) -> bytes:
    return f"{size}-{i:05d}".encode()


def count(path: Path, size: int) -> int:
    """How many images of `size` the LMDB has. Raises Refusal, naming the resolutions it has, where it has no such."""
    opened = environment(path)
    with damage_told(path), opened.begin() as transaction:
        length = transaction.get(LENGTH, b"")
        if not length.isdigit() or int(length) < 1:
            raise Refusal(
                f"{path} is not in FFHQ's layout: it has no key length with the number of its images"
            )
        n = int(length)
        if transaction.get(key(size, 0)) is None:
            there = ", ".join(map(str, _resolutions(transaction))) or "none"
            raise Refusal(f"data.image_size is {size}, and {path} has no images of that size; it has {there}")
        if transaction.get(key(size, n - 1)) is None:
            raise Refusal(
                f"{path} is not whole: its length is {n}, but it has no {key(size, n - 1).decode()}"
            )
    return n


def pictures(path: Path, data: DataConfig, indices: np.ndarray) -> Pictures:
    """The images `indices` at the model's resolution."""
    keys = ResolutionKeys(data.image_size, indices)
    return sound(Pictures(LmdbValues(path, keys), data), CHECKED_AT_START)


def _resolutions(transaction: lmdb.Transaction) -> list[int]:
    """Those of the keys, ascending, by a step from each to the next and not a walk over all."""
    sizes = []
    cursor = transaction.cursor()
    found = cursor.first()
    while found:
        size, dash, _ = bytes(cursor.key()).partition(b"-")
        if dash and size.isdigit():
            sizes.append(int(size))
        found = cursor.set_range(size + b".") if dash else cursor.next()  # "." follows "-"
    return sorted(sizes)
