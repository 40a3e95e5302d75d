"""Where encoded pictures lie: files below a folder, members of a zip, values of an LMDB. All may be used in any process."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import lmdb

from configs.refusal import Refusal
from datasets.lmdb_files import damage_told, environment

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


class Source(Protocol):
    """n encoded pictures."""

    @property
    def keys(self) -> Sequence[str] | Sequence[bytes]:
        """Their names within the source."""
        ...

    def describe(self, i: int) -> str:
        """Picture i in a sentence."""
        ...

    def read(self, i: int) -> bytes:
        """Picture i as it is stored. Raises OSError or ValueError where that can't be read."""
        ...


class Files:
    """The files `keys` of a folder."""

    def __init__(self, folder: Path, keys: Sequence[str]):
        self.folder, self.keys = folder, keys

    def describe(self, i: int) -> str:
        return os.path.join(self.folder, self.keys[i])

    def read(self, i: int) -> bytes:
        return Path(self.folder, self.keys[i]).read_bytes()


class ZipMembers:
    """The images in a zip file, in the order of their names."""

    def __init__(self, path: Path):
        self.path = path
        names = _zip(path, os.getpid()).namelist()
        self.keys = sorted(name for name in names if is_image(name) and "__MACOSX/" not in name)

    def describe(self, i: int) -> str:
        return f"{self.keys[i]} in {self.path}"

    def read(self, i: int) -> bytes:
        try:
            return _zip(self.path, os.getpid()).read(self.keys[i])
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
        ) as error:  # RuntimeError: it wants a password
            raise Refusal(str(error)) from None


class LmdbValues:
    """The values of `keys` in an LMDB, which each process opens for itself; pickled, it is its path and keys."""

    def __init__(self, path: Path, keys: Sequence[bytes]):
        self.path, self.keys = path, keys
        self.opened: tuple[int, lmdb.Environment] | None = None  # and the process that did it

    def describe(self, i: int) -> str:
        return f"{self.keys[i].decode(errors='backslashreplace')} of {self.path}"

    def read(self, i: int) -> bytes:
        if self.opened is None or self.opened[0] != os.getpid():
            self.opened = os.getpid(), environment(self.path)
        with damage_told(self.path), self.opened[1].begin() as transaction:
            value = transaction.get(self.keys[i])
        if value is None:
            raise Refusal("there is no such key")
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return LmdbValues, (self.path, self.keys)


def image_files(folder: Path) -> list[str]:
    """The images below `folder`, relative to it and in order: through links to folders too, each folder once."""
    return sorted(os.path.relpath(path, folder) for path in _walk(folder))


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not os.path.basename(name).startswith(
        "."
    )  # "._x.jpg" is none


def _walk(root: Path) -> Iterator[str]:
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        yield from (os.path.join(folder, name) for name in names if is_image(name))


@lru_cache(maxsize=2)
def _zip(path: Path, pid: int) -> zipfile.ZipFile:
    """Open once a process: two processes at one file's position would read each other's bytes."""
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise Refusal(f"{path} is damaged: {error}") from None
