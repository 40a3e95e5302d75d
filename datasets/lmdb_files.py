"""Reading an LMDB: opened once in each process, not past the end of its file, its keys found by number."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb
import numpy as np
from filelock import FileLock

from configs.refusal import Refusal

# By process and path: LMDB must not be opened twice in a process, and must not be used across a fork.
_open: WeakValueDictionary[tuple[int, Path], lmdb.Environment] = WeakValueDictionary()


def is_lmdb(path: Path) -> bool:
    return (path / "data.mdb").is_file()


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn LMDB's own errors inside the block into a Refusal that names `path`."""
    try:
        yield
    except lmdb.Error as error:
        raise Refusal(f"{path} is damaged, or not an LMDB ({error}); copy or download it again") from None


def environment(path: Path) -> lmdb.Environment:
    """An LMDB, open until its last user in this process drops it. Raises Refusal if it is damaged."""
    key = os.getpid(), path
    if key in _open:
        return _open[key]
    for (_, other), inherited in list(_open.items()):
        if other == path:  # after a fork: close this process's copy, which leaves the parent's open
            inherited.close()
    with naming_damage(path):  # access is random, so no readahead; the disk may be read-only, so no lock
        opened = lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False)
    needed = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
    size = (path / "data.mdb").stat().st_size
    if size < needed:  # reading a page past the end would kill the process
        raise Refusal(f"{path} is truncated: it has {size:,} bytes of {needed:,}; copy or download it again")
    _open[key] = opened
    return opened


class LmdbValues:
    """The values of `keys` in an LMDB. Each process opens it for itself; only path and keys are pickled."""

    def __init__(self, path: Path, keys: "KeyTable | np.ndarray"):
        self.path, self.keys = path, keys

    def __reduce__(self) -> tuple:
        return LmdbValues, (self.path, self.keys)

    def describe(self, i: int) -> str:
        return f"{self.keys[i].decode(errors='backslashreplace')} of {self.path}"

    def read(self, i: int) -> bytes:
        self.opened = environment(self.path)  # kept, so that it stays open
        with naming_damage(self.path), self.opened.begin() as transaction:
            value = transaction.get(self.keys[i])
        if value is None:
            raise Refusal("there is no such key")
        return value

    def identity(self) -> str:
        """A hash over what changes whenever the LMDB is written; reading all of it could take minutes."""
        file, opened = (self.path / "data.mdb").stat(), environment(self.path)
        state = [file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns]
        return hashlib.sha256(
            json.dumps([*state, opened.info()["last_txnid"], len(self.keys)]).encode()
        ).hexdigest()


class KeyTable:
    """All keys of an LMDB, in a mapped .npy: a row is a key's length in two bytes, the key, and zeros."""

    def __init__(self, path: Path):
        self.path, self.rows = path, np.load(path, mmap_mode="r", allow_pickle=False)

    def __reduce__(self) -> tuple:
        return KeyTable, (self.path,)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> bytes:
        row = self.rows[i].tobytes()
        return row[2 : 2 + int.from_bytes(row[:2], "big")]


def keys_of(path: Path) -> KeyTable:
    """The images' keys of an LMDB, which finds its i-th key only by a walk to it. Raises Refusal if damaged.

    Keys that only keep books, as __len__, are not among them. The keys are kept in a table in the user's
    cache. One process makes it while others wait.
    """
    opened, file = environment(path), (path / "data.mdb").stat()
    entries, last_change = opened.stat()["entries"], opened.info()["last_txnid"]
    where = [os.path.realpath(path), file.st_size, file.st_mtime_ns, file.st_ctime_ns]
    state = json.dumps([*where, entries, last_change, "of images"])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddim" / "lmdb_keys"
    table = cache / f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.npy"  # a changed LMDB gets a new one
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(table.with_suffix(".lock")), naming_damage(path):
            with suppress(FileNotFoundError, EOFError, ValueError):  # not made yet, or damaged
                return KeyTable(table)
            logging.info(f"indexing the {entries:,} keys of {path}, once, into {table}")
            with opened.begin() as transaction, open(table.with_suffix(".tmp"), "wb") as npy:
                n = width = 0
                for key in _of_images(transaction):
                    n, width = n + 1, max(width, len(key))
                header = {"descr": "|u1", "fortran_order": False, "shape": (n, 2 + width)}
                np.lib.format.write_array_header_1_0(npy, header)
                for key in _of_images(transaction):
                    npy.write(len(key).to_bytes(2, "big") + key.ljust(width, b"\0"))
            os.replace(npy.name, table)
            return KeyTable(table)
    except OSError as error:
        raise Refusal(f"{path} cannot be indexed in {cache} ({error}); XDG_CACHE_HOME moves it") from None


def _of_images(transaction: lmdb.Transaction) -> Iterator[bytes]:
    """The keys but those in which writers of LMDBs keep numbers and lists of keys."""
    for key in map(bytes, transaction.cursor().iternext(values=False)):
        if key not in (b"length", b"num-samples") and not (key.startswith(b"__") and key.endswith(b"__")):
            yield key
