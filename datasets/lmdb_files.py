"""Reading an LMDB, page by page, so that no damage in it ends the process; and finding its keys by number.

The library trusts what it finds in its map of the file: a flipped bit there ends the process by a signal.
This reader, of the file format of LMDB 0.9, checks each page it meets. It takes no map and no lock, so it may
be used across a fork, and on a disk that is read-only.
"""

import hashlib
import json
import logging
import os
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from configs import door, machine
from configs.refusal import Refusal, short

WHAT = "an LMDB; copy or download it again"
SUMMED = 256  # images whose checksums lie in one value of a packed set
_MAGIC = b"\xde\xc0\xef\xbe\x01\0\0\0"  # with the version of the format
_BRANCH, _LEAF, _LARGE = 1, 2, 4  # the kinds of pages
_HEADER = 16  # bytes of a page: its number, the kind, the end of the table of nodes
_EMPTY = 2**64 - 1  # the root of a tree without pages
_DEEPEST = 32  # levels of a tree, as in the library


def is_lmdb(path: Path) -> bool:
    return (path / "data.mdb").is_file()


class Lmdb:
    """The newest state of the LMDB in the folder `path`. Raises Refusal where it is damaged."""

    def __init__(self, path: Path):
        self.path = path
        with door.reading(path, WHAT):
            self.file = open(door.regular(path / "data.mdb"), "rb", buffering=0)  # noqa: SIM115
            begin = os.pread(self.file.fileno(), 2**16 + 152, 0)
            (self.page_size,) = struct.unpack_from("<I", begin, 40)
            both = [begin[at : at + 152] for at in (0, self.page_size)]  # the last two states
            if any(meta[16:24] != _MAGIC for meta in both):
                raise ValueError("it does not begin as one")
            newest = max((struct.unpack_from("<4Q", meta, 120) for meta in both), key=lambda meta: meta[3])
            self.entries, self.root, self.last_page, self.transaction = newest
            needed, size = (self.last_page + 1) * self.page_size, os.fstat(self.file.fileno()).st_size
        if size < needed:
            has = f"it has {size:,} bytes of {needed:,}"
            raise Refusal(f"{path} is truncated: {has}; copy or download it again")

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        number = self.root
        with door.reading(self.path, WHAT):
            for _ in range(_DEEPEST if number != _EMPTY else 0):
                nodes = _Nodes(self._page(number), number)
                if nodes.kind == _BRANCH:  # the first node's key stands for all that come before
                    number = nodes.child(bisect_right(nodes.offsets, key, 1, key=nodes.key) - 1)
                    continue
                i = bisect_left(nodes.offsets, key, key=nodes.key)
                found = i < len(nodes.offsets) and nodes.key(nodes.offsets[i]) == key
                return self._value(*nodes.value(i)) if found else None
            if number != _EMPTY:
                raise ValueError("its tree of pages has no end")
        return None

    def __iter__(self) -> Iterator[bytes]:
        """The keys, in their order."""
        numbers, pages = [] if self.root == _EMPTY else [self.root], 0
        while numbers:
            number, pages = numbers.pop(), pages + 1
            with door.reading(self.path, WHAT):
                nodes = _Nodes(self._page(number), number)
                if pages > self.last_page:
                    raise ValueError("its tree of pages has no end")
                found = [nodes.key(offset) for offset in nodes.offsets] if nodes.kind == _LEAF else []
                if nodes.kind == _BRANCH:
                    numbers += [nodes.child(i) for i in reversed(range(len(nodes.offsets)))]
            yield from found

    def _page(self, number: int, size: int | None = None, skip: int = 0) -> bytes:
        """`size` bytes of pages from one on, by default this page."""
        size = size or self.page_size
        page = os.pread(self.file.fileno(), size, number * self.page_size + skip)
        if not 2 <= number <= self.last_page or len(page) < size:
            raise ValueError(f"there is no page {number}")
        return page

    def _value(self, size: int, flags: int, inside: bytes) -> bytes:
        """A value that lies in the node, or in pages of its own."""
        if flags == 0 and len(inside) == size:
            return inside
        if flags != 1:
            raise ValueError("it has values of a kind that is not read")
        (number,) = struct.unpack("<Q", inside)
        own, _, kind, pages = struct.unpack_from("<QHHI", self._page(number))
        if own != number or kind != _LARGE or size > pages * self.page_size - _HEADER:
            raise ValueError(f"page {number} is another")
        return self._page(number, size, _HEADER) if size else b""


class _Nodes:
    """A page of nodes: keys with their values, or with the pages of the next level."""

    def __init__(self, page: bytes, number: int):
        own, _, self.kind, end = struct.unpack_from("<QHHH", page)
        if own != number or self.kind not in (_BRANCH, _LEAF) or not _HEADER <= end <= len(page):
            raise ValueError(f"page {number} is another")
        self.page = page
        self.offsets = struct.unpack_from(f"<{(end - _HEADER) // 2}H", page, _HEADER)

    def key(self, offset: int) -> bytes:
        (length,) = struct.unpack_from("<H", self.page, offset + 6)
        return self.page[offset + 8 : offset + 8 + length]

    def child(self, i: int) -> int:
        low, high = struct.unpack_from("<IH", self.page, self.offsets[i])
        return low | high << 32

    def value(self, i: int) -> tuple[int, int, bytes]:
        """Its size, its flags, and what lies in the node."""
        size, flags, length = struct.unpack_from("<IHH", self.page, self.offsets[i])
        begin = self.offsets[i] + 8 + length
        return size, flags, self.page[begin : begin + (size if flags == 0 else 8)]


class LmdbValues:
    """The values of `keys` in an LMDB. Each process opens it for itself; only path and keys are pickled.

    numbers: of the images in a packed set, whose checksums are compared where it has them.
    """

    def __init__(self, path: Path, keys: "KeyTable | np.ndarray", numbers: np.ndarray | None = None):
        self.path, self.keys, self.numbers = path, keys, numbers
        self.opened, self.sums = Lmdb(path), dict[int, bytes]()

    def __reduce__(self) -> tuple:
        return LmdbValues, (self.path, self.keys, self.numbers)

    def describe(self, i: int) -> str:
        return f"{short(self.keys[i].decode(errors='backslashreplace'))} of {self.path}"

    def read(self, i: int) -> bytes:
        """Raises LookupError without the key, ValueError for a value that is not what was packed."""
        value = self.opened.get(self.keys[i])
        if value is None:
            raise LookupError("there is no such key")
        if self.numbers is not None:
            row = int(self.numbers[i]) % SUMMED
            first = int(self.numbers[i]) - row
            if first not in self.sums:
                self.sums[first] = self.opened.get(sums_key(first)) or b""
            sums = self.sums[first]
            if len(sums) > 4 * row and zlib.crc32(value) != struct.unpack_from("<I", sums, 4 * row)[0]:
                raise ValueError("its checksum is wrong")
        return value

    def identity(self) -> str:
        """A hash over what changes whenever the LMDB is written; reading all of it could take minutes."""
        file, opened = (self.path / "data.mdb").stat(), Lmdb(self.path)
        state = [file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns]
        return hashlib.sha256(json.dumps([*state, opened.transaction, len(self.keys)]).encode()).hexdigest()


def sums_key(first: int) -> bytes:
    """Where a packed set keeps the CRC-32 of 256 images from `first` on, four bytes each."""
    return f"__crc32-{first}__".encode()


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
    opened, file = Lmdb(path), (path / "data.mdb").stat()
    where = [os.path.realpath(path), file.st_size, file.st_mtime_ns, file.st_ctime_ns]
    state = json.dumps([*where, opened.entries, opened.transaction, "of images"])
    cache = machine.cache() / "ddim" / "lmdb_keys"
    table = cache / f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.npy"  # a changed LMDB gets a new one
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(table.with_suffix(".lock")):
            with suppress(FileNotFoundError, EOFError, ValueError):  # not made yet, or damaged
                return KeyTable(table)
            logging.info(f"indexing the {opened.entries:,} keys of {path}, once, into {table}")
            with open(table.with_suffix(".tmp"), "wb") as npy:
                n = width = 0
                for key in _of_images(opened):
                    n, width = n + 1, max(width, len(key))
                header = {"descr": "|u1", "fortran_order": False, "shape": (n, 2 + width)}
                np.lib.format.write_array_header_1_0(npy, header)
                for key in _of_images(opened):
                    npy.write(len(key).to_bytes(2, "big") + key.ljust(width, b"\0"))
            os.replace(npy.name, table)
            return KeyTable(table)
    except OSError as error:
        raise Refusal(f"{path} cannot be indexed in {cache} ({error}); XDG_CACHE_HOME moves it") from None


def _of_images(opened: Lmdb) -> Iterator[bytes]:
    """The keys but those in which writers of LMDBs keep numbers and lists of keys."""
    for key in opened:
        if key not in (b"length", b"num-samples") and not (key.startswith(b"__") and key.endswith(b"__")):
            yield key
