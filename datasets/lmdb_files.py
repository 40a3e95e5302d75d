"""Reading an LMDB: opened when a process first needs it, and never past the end of its file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from configs.refusal import Refusal

# By process and path: LMDB may not open a file twice in a process, and what it opened may not cross a fork.
_open: WeakValueDictionary[tuple[int, str], lmdb.Environment] = WeakValueDictionary()


def is_lmdb(path: Path) -> bool:
    """Whether `path` is an LMDB: a folder with a data.mdb, or such a file itself."""
    return data_file(path).is_file() and (path.is_dir() or path.suffix in (".mdb", ".lmdb"))


def data_file(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


def environment(path: Path) -> lmdb.Environment:
    """`path`, open for reading in this process until its last user drops it.

    Raises Refusal for a file that is no LMDB, or not a whole one.
    """
    pid, name = os.getpid(), os.path.realpath(path)
    if (pid, name) in _open:
        return _open[pid, name]
    for (_, other), inherited in list(_open.items()):
        if other == name:  # the copy that a fork made; the parent's is not touched
            inherited.close()
    with damage_told(path):
        # Random access gains nothing from readahead; without locks, data on a read-only disk can be read.
        opened = lmdb.open(
            name, subdir=path.is_dir(), readonly=True, lock=False, readahead=False, meminit=False
        )
    needed = (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
    there = data_file(path).stat().st_size
    if there < needed:  # to touch a page past the end would kill the process
        raise Refusal(
            f"{path} is truncated: its file has {there:,} bytes of {needed:,}; copy or download it again"
        )
    _open[pid, name] = opened
    return opened


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """LMDB's own errors inside the block as a Refusal that names `path`."""
    try:
        yield
    except lmdb.Error as error:
        raise Refusal(f"{path} is damaged, or no LMDB ({error}); copy or download it again") from None
