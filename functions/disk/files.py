"""Files that appear whole, and folders that one process uses at a time."""

import errno
import glob
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from configs.refusal import Refusal

HERE = socket.gethostname()
LEFT_BEHIND = 60.0  # seconds after which the file of a process on another machine is left behind


@contextmanager
def atomic(path: Path, durable: bool = True, new: bool = False) -> Iterator[Path]:
    """A path to write; the file appears under `path` when the block ends without an error.

    durable: it survives a power cut too, and several processes may write it. Otherwise one at a time may, and
    what a killed one left is replaced. Raises OSError that names the file; with `new` Refusal where `path`
    was made meanwhile.
    """
    temporary = _temporary(path) if durable else path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    if durable:
        _remove_leftovers(path)
    try:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        if new:
            _name_new(temporary, path)
        else:
            os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}@{HERE}.tmp")


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes were writing under `path`. That of one that lives stays."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError, ValueError):
            pid, _, host = file.name[len(path.name) + 2 : -len(".tmp")].partition("@")
            old = time.time() - file.stat().st_mtime > LEFT_BEHIND
            if not _lives(int(pid)) if host == HERE else old:
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def _lives(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which appears under `path` when the block ends without an error.

    Raises Refusal where `path` was made meanwhile.
    """
    temporary = _temporary(path)
    _remove_leftovers(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _name_new(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _name_new(temporary: Path, path: Path) -> None:
    try:
        os.rename(temporary, path) if temporary.is_dir() else os.link(temporary, path)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP) and not path.exists():
            os.rename(temporary, path)  # a file system without hard links
            return
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise Refusal(f"{path} was made meanwhile, and nothing is overwritten; give another name") from None


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def link(source: Path, path: Path) -> None:
    """`path` becomes another name of `source`; a copy where the file system has no hard links."""
    with atomic(path) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process. Raises Refusal where another process has it.

    The lock is a file below .locks beside the folder, for the folder itself may be moved.
    """
    path = folder.parent / ".locks" / f"{folder.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise Refusal(f"{folder} is in use by another process; wait for it, or choose another name") from None


def move_aside(*paths: Path) -> list[tuple[Path, Path]]:
    """Rename each path that exists to `{name}.K`, with the first K that is free for all. (old, new) pairs."""
    k = 1
    while any(path.with_name(f"{path.name}.{k}").exists() for path in paths):
        k += 1
    moves = [(path, path.with_name(f"{path.name}.{k}")) for path in paths if path.exists()]
    for old, new in moves:
        old.rename(new)
    return moves


def has_content(folder: Path) -> bool:
    with suppress(FileNotFoundError):
        return any(folder.iterdir())
    return False


def digest(path: Path, algorithm: str) -> str:
    """The hash of a file, as hexadecimal digits; `algorithm` as hashlib names it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
