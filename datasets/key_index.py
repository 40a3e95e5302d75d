"""The keys of an LMDB as a memory-mapped table, made once: LMDB itself can't tell its i-th key without a walk to it.

It lies in the user's cache, named by what identifies the LMDB, so that a changed one is indexed anew.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import lmdb
import numpy as np
from filelock import FileLock

from configs.refusal import Refusal
from datasets.lmdb_files import damage_told, data_file, environment

LENGTH_BYTES = 2  # of a key, before it in its row: LMDB's keys have at most 511 bytes


class KeyIndex(Sequence[bytes]):
    """The keys in LMDB's order. Nothing of it is in memory but the pages that were read; pickled, it is its path."""

    def __init__(self, path: Path):
        """Raises OSError or Refusal for a file that isn't there or isn't such a table."""
        self.path = path
        self.rows = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> bytes: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[bytes]: ...
    def __getitem__(self, i: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        row = self.rows[i].tobytes()
        return row[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(row[:LENGTH_BYTES], "big")]

    def __reduce__(self) -> tuple[Any, ...]:
        return KeyIndex, (self.path,)


def keys_of(path: Path) -> KeyIndex:
    """All keys of the LMDB `path`, from the index of them, which is made where there is none.

    Any number of processes may do so at a time: one makes it, the others wait for it. Raises Refusal for a damaged LMDB.
    """
    opened, file = environment(path), data_file(path).stat()
    entries = opened.stat()["entries"]
    identity = [os.path.realpath(path), file.st_size, file.st_mtime_ns, entries, opened.info()["last_txnid"]]
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    place = _cache() / f"{name}.npy"
    try:
        index = _whole(place, entries)
        if index is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(place.with_suffix(".lock")):
                if _whole(place, entries) is None:
                    logging.info(f"indexing the {entries:,} keys of {path}, once, into {place}")
                    with damage_told(path):
                        _write(place, opened, entries)
            index = KeyIndex(place)
    except OSError as error:
        raise Refusal(
            f"the index of {path} cannot be kept in {place.parent} ({error}); XDG_CACHE_HOME moves it"
        ) from None
    return index


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddim" / "lmdb_keys"


def _whole(place: Path, entries: int) -> KeyIndex | None:
    with suppress(FileNotFoundError, ValueError, EOFError):
        index = KeyIndex(place)
        if index.rows.dtype == np.uint8 and index.rows.ndim == 2 and len(index) == entries:
            return index
    return None


def _write(place: Path, opened: lmdb.Environment, entries: int) -> None:
    """A .npy of one row a key: its length, its bytes, zeros. It appears whole."""
    temporary = place.with_suffix(".tmp")
    with opened.begin() as transaction:
        width = max(map(len, transaction.cursor().iternext(values=False)), default=0)
        with open(temporary, "wb") as table:
            header = {"descr": "|u1", "fortran_order": False, "shape": (entries, LENGTH_BYTES + width)}
            np.lib.format.write_array_header_1_0(table, header)
            for key in transaction.cursor().iternext(values=False):
                table.write(len(key).to_bytes(LENGTH_BYTES, "big") + key.ljust(width, b"\0"))
    os.replace(temporary, place)
