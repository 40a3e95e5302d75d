"""The one door for files from outside: each is a regular file of a sane size, and damage is one sentence.

Imports nothing heavy, so that every room can use it.
"""

import errno
import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.refusal import Refusal, short

TEXT = 16 * 2**20  # bytes that a manifest or another text may have
_KINDS = [
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"), (stat.S_ISSOCK, "a socket"),
]  # fmt: skip
# The user can put these right. What remains, such as a failing disk, is not about this file.
_ABOUT_THE_FILE = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}


def regular(path: Path, most: int | None = None) -> Path:
    """`path`, where it is a regular file, or a link to one, of at most `most` bytes. Raises Refusal if not.

    Anything else could block for ever or never end. Raises FileNotFoundError where there is nothing.
    """
    with reading(path, "a file", missing_is_told=False):
        status = path.stat()
    for is_kind, name in _KINDS:
        if is_kind(status.st_mode):
            raise Refusal(f"{path} is {name}, not a file")
    if most is not None and status.st_size > most:
        raise Refusal(f"{path} has {status.st_size:,} bytes; such a file has at most {most:,}")
    return path


@contextmanager
def reading(path: object, what: str, missing_is_told: bool = True) -> Iterator[None]:
    """Parse `path` inside the block. Whatever a foreign parser raises there becomes a Refusal that names it.

    what: what the file should be, as in "a picture". This is the program's only broad except: no list of a
    parser's exceptions has ever been complete.
    """
    try:
        yield
    except Refusal:
        raise
    except FileNotFoundError:
        if missing_is_told:
            raise Refusal(f"{path} does not exist; it should be {what}") from None
        raise
    except MemoryError:
        raise Refusal(f"{path} needs more memory than there is; is it {what}?") from None
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # a parser's own, or a jump to before the file's beginning
            raise _damaged(path, what, error) from None
        if error.errno not in _ABOUT_THE_FILE:
            raise
        raise Refusal(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:
        raise _damaged(path, what, error) from None


def read_bytes(path: Path, what: str, most: int) -> bytes:
    """Raises as `regular` and `reading`."""
    with reading(path, what, missing_is_told=False):
        return regular(path, most).read_bytes()


def read_text(path: Path, what: str, most: int = TEXT) -> str:
    """UTF-8. Raises as `read_bytes`."""
    with reading(path, what, missing_is_told=False):
        return read_bytes(path, what, most).decode("utf-8")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object. Raises as `read_bytes`, and Refusal where the file holds something else."""
    with reading(path, what, missing_is_told=False):
        content = json.loads(read_text(path, what))
    if not isinstance(content, dict):
        raise Refusal(f"{path} holds a {type(content).__name__}; it must be an object")
    return content


def _damaged(path: object, what: str, error: Exception) -> Refusal:
    why = " ".join(str(error).split())
    return Refusal(f"{path} is damaged or not {what} ({short(why, 200) if why else type(error).__name__})")
